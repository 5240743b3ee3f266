"""Ordinary images and models by containerd's own command line and in pods: what is seen is what overlayfs shows, and of what was
pulled, run, read and removed nothing is left.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import debian, documents, images
from tests.lab.containerd import Containerd
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted
from tests.lab.place import lazy_place
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.lab.trees import LATER, Entry, differences, listed
from tests.property.layers import Folder, HardLink, Sample, Symlink, packed
from tests.property.seen import look
from tests.property.trees import Specimen, raw
from tests.system.node import ok, segments_of

pytestmark = pytest.mark.system

OURS, THEIRS = "modelvold", "overlayfs"
#: How many paths an image has at least.
_IMAGES = {"pause": 30, "busybox": 30, "debian": 2000}
#: Tables that grow for good: what the façade has given once it gives again, and a boot is one.
_LASTING = {"given", "life", "schema"}


@dataclass(frozen=True, slots=True)
class Held:
    """What is there: mounts below the stage's folder; of the store its files and folders, its rows, and the inodes of its file system."""

    mounts: frozenset[str]
    files: frozenset[str]
    rows: Mapping[str, int]
    inodes: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A node with both snapshotters, its store on a file system of its own; `images` are pushed, `ordinary` is the id of one in pods."""

    folder: Path
    registry: Registry
    daemon: Daemon
    containerd: Containerd
    images: Mapping[str, Pushed]
    ordinary: str

    def pull(self, image: Pushed, snapshotter: str) -> None:
        hosts = ("--hosts-dir", self.containerd.certificates)
        self.containerd.ctr("images", "pull", *hosts, "--snapshotter", snapshotter, image.reference)

    def remove_images(self) -> None:
        """Returns when containerd has collected what they leave."""
        if references := self.containerd.ctr("images", "ls", "-q").split():
            self.containerd.ctr("images", "rm", "--sync", *references)

    def snapshots(self, *words: str | Path, snapshotter: str = OURS) -> str:
        return self.containerd.ctr("snapshots", "--snapshotter", snapshotter, *words)

    def changes(self, lower: str, upper: str) -> set[str]:
        """The names in the layer that `ctr snapshots diff` makes: what turns `lower` into `upper`."""
        program, socket = debian.containerd().parent / "ctr", self.containerd.socket
        words = ["snapshots", "--snapshotter", OURS, "diff", "--media-type", documents.IMAGE_LAYER, lower, upper]
        ran = subprocess.run([program, "--address", socket, *words], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(ran.stdout)) as tar:
            return set(tar.getnames())

    @contextmanager
    def seen(self, image: Pushed, snapshotter: str) -> Iterator[Path]:
        """Where `ctr images mount` shows it."""
        at = self._place()
        named = ("--snapshotter", snapshotter)
        self.containerd.ctr("images", "mount", *named, image.reference, at)
        try:
            yield at
        finally:
            self.containerd.ctr("images", "unmount", *named, "--rm", at)
            at.rmdir()

    @contextmanager
    def mounted(self, key: str, snapshotter: str = OURS) -> Iterator[Path]:
        """A snapshot, as `ctr snapshots mounts` says it is mounted."""
        at = self._place()
        command = self.snapshots("mounts", at, key, snapshotter=snapshotter)
        subprocess.run(["sh", "-ec", command], check=True, capture_output=True)
        try:
            yield at
        finally:
            subprocess.run(["umount", at], check=True, capture_output=True)
            at.rmdir()

    def _place(self) -> Path:
        at = self.folder / "at"
        at.mkdir()
        return at


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with lazy_place() as folder, ExitStack() as life:
        yield _set(folder, life)


def _set(folder: Path, life: ExitStack) -> Stage:
    registry = life.enter_context(Registry(folder / "registry"))
    pushed = {
        "pause": images.pause(registry.push),
        "busybox": images.busybox(registry.push),
        "debian": images.debian_base(registry.push),
        "application": images.application(registry.push),
        "small": images.small(registry.push),
    }
    daemon = Daemon(folder / "daemon", {"fetch": {"prefetch": False}}, hosts_dir=folder / "containerd/certs.d")
    containerd = Containerd(folder / "containerd", pushed["pause"].reference, daemon.for_containerd)
    containerd.hosts(registry)
    life.enter_context(_disk(folder / "disk", daemon.root))
    life.enter_context(daemon)
    life.callback(lambda: _check_unforced(containerd))
    life.enter_context(containerd)
    return Stage(folder, registry, daemon, containerd, pushed, containerd.cri.pull(pushed["pause"].reference))


def _check_unforced(containerd: Containerd) -> None:
    assert containerd.leftovers == []


@contextmanager
def _disk(image: Path, at: Path) -> Iterator[None]:
    """An ext4 on a loop device, so that nobody else's inodes are counted."""
    with image.open("xb") as file:
        file.truncate(2 << 30)
    at.mkdir(parents=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True, capture_output=True)
        image.unlink()


# -- what is seen


@pytest.mark.parametrize("name", _IMAGES)
def test_an_image_looks_as_with_overlayfs(stage: Stage, name: str) -> None:
    """Path by path: types, modes, owners, times, sizes, targets, names of one file, attributes, devices and every byte."""
    image, since = stage.images[name], time.time_ns()
    trees: dict[str, dict[str, Entry]] = {}
    with freed(stage):
        for snapshotter in (THEIRS, OURS):
            stage.pull(image, snapshotter)
            with stage.seen(image, snapshotter) as at:
                assert mounted(at)
                trees[snapshotter] = listed(at, since)
        assert differences(trees[OURS], trees[THEIRS]) == []
        # What layers say of the root itself, containerd leaves out.
        assert [path for path, entry in trees[OURS].items() if entry.mtime == LATER] == ["."]
        assert len(trees[OURS]) >= _IMAGES[name]
        if name == "debian":
            check_kinds(trees[OURS])


def test_an_application(stage: Stage) -> None:
    """Several layers on that Debian, which look the same; and a container of them writes, deletes and renames in all of them: its root
    is the same afterwards, and the image as before."""
    image, since = stage.images["application"], time.time_ns()
    before: dict[str, dict[str, Entry]] = {}
    after: dict[str, dict[str, Entry]] = {}
    said: dict[str, str] = {}
    with freed(stage):
        for snapshotter in (THEIRS, OURS):
            stage.pull(image, snapshotter)
            with stage.seen(image, snapshotter) as at:
                before[snapshotter] = listed(at, since)
            name, flags = f"changing-{snapshotter}", ("--snapshotter", snapshotter, "--allow-new-privs")
            said[snapshotter] = stage.containerd.ctr_run(image.reference, name, "/bin/sh", "-c", _CHANGES, flags=flags)
            with stage.mounted(name, snapshotter) as at:
                after[snapshotter] = listed(at, since)
            stage.containerd.ctr("containers", "rm", name)
        assert differences(before[OURS], before[THEIRS]) == []
        check_layers(before[OURS])
        assert said[OURS] == said[THEIRS]
        assert said[OURS].splitlines()[:3] == ["0", "Permission denied", "again"]
        assert differences(after[OURS], after[THEIRS]) == []
        assert len(differences(after[OURS], before[OURS], 10_000)) > 100
        with stage.seen(image, OURS) as at:
            assert differences(listed(at, since), before[OURS]) == []


def check_kinds(tree: Mapping[str, Entry]) -> None:
    """Of what is compared there is some in a Debian."""
    assert sum(bool(entry.mode & (stat.S_ISUID | stat.S_ISGID)) for entry in tree.values()) >= 8
    assert sum(stat.S_ISLNK(entry.mode) for entry in tree.values()) >= 80
    assert any(entry.same not in ("", path) for path, entry in tree.items())


def check_layers(tree: Mapping[str, Entry]) -> None:
    """What lies above has its way."""
    check_kinds(tree)
    kinds = {stat.S_IFMT(entry.mode) for entry in tree.values()}
    assert {stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK} <= kinds
    assert dict(tree["app/attributed"].attributes)["user.lab"] == b"file"
    assert "security.capability" not in dict(tree["app/bin/ping"].attributes)
    assert "security.capability" in dict(tree["app/bin/pong"].attributes)
    assert [path for path in tree if path.startswith("app/data/")] == ["app/data/fresh"]
    licences = "usr/share/common-licenses"
    assert [path for path in tree if path.startswith(f"{licences}/")] == [f"{licences}/OURS"]
    assert tree["app/one"].same == tree["app/two"].same != tree["app/three"].same
    assert not {"app/old/more", "app/name"} & tree.keys()


#: What it prints first: who it is by a setuid bit, what it may not do, what it reads where it has removed and made anew.
_CHANGES = """
set -e
cd /app
cp /usr/bin/id who; chmod 4755 who; setpriv --reuid=1000 --clear-groups ./who -u
setpriv --reuid=1000 --clear-groups rm -f bin/tool 2>&1 | sed 's/.*: //'
echo more >>bin/tool; echo new >written; printf ab | dd of=large bs=1 seek=70000 conv=notrunc status=none
rm /etc/debian_version "ünïcode 名 \\\\ and a space" bin/group; rm -r old folder-*; rmdir empty
mv renamed moved; mv /etc/issue issue; mv data /data; mv /usr/share/base-files /usr/share/renamed-files
mkdir data; echo again >data/again; cat data/*; mkdir old; echo again >old/again
mv three three-again; ln two four; ln -s ../etc/passwd new-link; ln -sf elsewhere dangling
chmod 4710 owned; chown 5:6 locked; chown -h 7:8 relative; chmod 1777 group; touch -d @1 attributed; touch -h -d @2 absolute
cp -a attributed copied; mkfifo new-pipe; mknod zero c 1 5; rm pipe null disk; truncate -s 3M sparse; truncate -s 10 large
rm -r becomes-folder; echo file >becomes-folder; rm becomes-file; mkdir becomes-file; rm -r /usr/share/perl5 /var/lib/dpkg || true
cd /; find /app /etc /usr/share /data -xdev -printf '%y %m %U %G %n %l %p\\n' | grep -v '^d' | sort
"""


# -- containerd's own verbs


def test_the_verbs_of_ctr_snapshots(stage: Stage) -> None:
    """Every one of them, on the layers of an image; what a layer takes is what overlayfs says, inode by inode."""
    image = stage.images["small"]
    with freed(stage):
        for snapshotter in (THEIRS, OURS):
            stage.pull(image, snapshotter)
        chain = _chain(stage)
        assert chain == _chain(stage, THEIRS)
        assert len(chain) == len(image.layers)
        for name in chain:
            ours, theirs = _usage(stage, name), _usage(stage, name, THEIRS)
            assert ours.inodes == theirs.inodes > 0
            assert theirs.size / 2 < ours.size < theirs.size * 2
        assert len(stage.snapshots("tree").splitlines()) == len(chain)

        top = chain[-1]
        stage.snapshots("prepare", "work", top)
        # As a view has no lease and, by this verb, no label that keeps it: the next collection is a hundred changes away, not one.
        stage.containerd.collect()
        stage.snapshots("view", "look", top)
        stage.snapshots("label", "look", "containerd.io/gc.root=here")
        assert [_info(stage, name)["Kind"] for name in (top, "work", "look")] == ["Committed", "Active", "View"]
        assert _info(stage, "work")["Parent"] == top
        empty = _usage(stage, "work")
        with stage.mounted("work") as at:
            (at / "app/added").write_bytes(bytes(1 << 20))
            (at / "app/bin/tool").unlink()
        assert _usage(stage, "work").size >= empty.size + (1 << 20)
        with stage.mounted("look") as at:
            assert (at / "app/bin/tool").exists()
            with pytest.raises(OSError, match="Read-only file system"):
                (at / "app/new").touch()
        stage.snapshots("commit", "done", "work")
        stage.snapshots("label", "done", "containerd.io/gc.root=here", "lab/one=two")
        assert _info(stage, "done")["Labels"] == {"containerd.io/gc.root": "here", "lab/one": "two"}
        assert stage.changes(top, "done") >= {"app/added", "app/bin/.wh.tool"}

        refused = stage.containerd.try_ctr("snapshots", "--snapshotter", OURS, "rm", top)
        assert refused.returncode != 0
        assert "cannot remove snapshot with child" in refused.stderr
        stage.snapshots("rm", "look")
        stage.snapshots("rm", "done")
        assert _chain(stage) == chain
        # Unpacked anew, from what containerd has kept of the image.
        stage.remove_images()
        assert _chain(stage) == []
        stage.pull(image, THEIRS)
        stage.snapshots("unpack", "--snapshotter", OURS, image.digest)
        assert _chain(stage) == chain


@dataclass(frozen=True, slots=True)
class _Usage:
    size: int
    inodes: int


def _usage(stage: Stage, name: str, snapshotter: str = OURS) -> _Usage:
    """A line is `KEY SIZE INODES`."""
    line = stage.snapshots("usage", "-b", name, snapshotter=snapshotter).splitlines()[-1].split()
    assert line[0] == name
    return _Usage(int(line[1]), int(line[2]))


def _info(stage: Stage, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.snapshots("info", name))
    return found


def _chain(stage: Stage, snapshotter: str = OURS) -> list[str]:
    """The committed snapshots, each above the one before; there is one chain at most."""
    lines = stage.snapshots("ls", snapshotter=snapshotter).splitlines()[1:]
    above = {}
    for line in lines:
        name, *parent, kind = line.split()
        assert kind == "Committed"
        above["".join(parent)] = name
    chain: list[str] = []
    while (name := above.pop(chain[-1] if chain else "", "")) != "":
        chain.append(name)
    assert above == {}
    return chain


# -- models


def _members() -> list[Sample]:
    sizes = {
        "config.json": 700,
        "weights/model-1.safetensors": (17 << 20) + 513,
        "weights/model-2.safetensors": 3 << 20,
        "empty": 0,
    }
    return [
        Sample(path, size, 40 + n, mtime=(1_700_000_000 + n) * 10**9) for n, (path, size) in enumerate(sizes.items())
    ]


_SPECIMENS: dict[str, Callable[[], Specimen]] = {
    "raw": lambda: raw(*_members()),
    "tar": lambda: Specimen(
        (
            packed(
                [
                    *_members(),
                    Folder("weights", 0o750, 10**18, 5, 6),
                    Symlink("link", "config.json", 10**18),
                    HardLink("again", "config.json"),
                ]
            ),
        )
    ),
}


@pytest.mark.parametrize("form", _SPECIMENS)
def test_a_model(stage: Stage, form: str) -> None:
    """By `ctr images pull` through the façade and as an image volume of two pods: as it was pushed, and gone when it is removed."""
    specimen = _SPECIMENS[form]()
    model = stage.registry.push.layers(specimen.layers, f"models/{form}")
    sums = {path: hashlib.sha256(content).hexdigest() for path, content in specimen.contents().items()}
    cri = stage.containerd.cri
    with freed(stage):
        stage.pull(model, OURS)
        with stage.seen(model, OURS) as at:
            assert look(at) == specimen.shown()
            assert {path: hashlib.sha256((at / path).read_bytes()).hexdigest() for path in sums} == sums
            with pytest.raises(OSError, match="Read-only file system"):
                (at / "new").touch()
        [chain] = _chain(stage)
        labels = _info(stage, chain)["Labels"]
        assert labels["containerd.io/snapshot/modelvold.manifest"] == model.digest
        assert labels["containerd.io/snapshot/modelvold.reference"].startswith(model.reference.rpartition(":")[0])
        stage.snapshots("prepare", "work", chain)
        with stage.mounted("work") as at:
            (at / "config.json").write_text("ours")
            (at / "empty").rename(at / "weights/moved")
        stage.snapshots("rm", "work")
        volume = cri.pull(model.reference)
        pods = []
        for number in range(2):
            pods.append(cri.run_pod(f"{form}-{number}"))
            container = cri.create_container(pods[-1], stage.ordinary, {"/model": volume})
            cri.start(container)
            ran = cri.exec(container, ["/bin/sh", "-c", "cd /model && find . -type f -exec sha256sum {} +"])
            pairs = (line.split(maxsplit=1) for line in ran.stdout.decode().splitlines())
            assert {path.removeprefix("./"): digest for digest, path in pairs} == sums
        for pod in pods:
            cri.remove_pod(pod)
        cri.remove_image(volume)
        # The other namespace has it still, and after it the store.
        assert _chain(stage) == [chain]
        stage.remove_images()
        assert _chain(stage) == []
        assert segments_of(stage.daemon) != []


# -- what is left


@contextmanager
def freed(stage: Stage) -> Iterator[None]:
    """After the block, the removal of the images that it pulled, and `modelvold gc`, there is what there was before it."""
    before = held(stage)
    try:
        yield
    finally:
        stage.remove_images()
    assert wait_until(lambda: held(stage).mounts == before.mounts, 10), held(stage).mounts ^ before.mounts
    ok(stage.daemon, "gc")
    wait_until(lambda: held(stage) == before, 10)
    after = held(stage)
    assert after.mounts == before.mounts
    assert sorted(after.files ^ before.files) == []
    assert after.rows == before.rows
    assert after.inodes == before.inodes


def held(stage: Stage) -> Held:
    root = stage.daemon.root
    files: list[str] = []
    folders: list[str] = []
    for above, below, names in os.walk(root):
        files += [f"{above}/{name}" for name in names]
        folders += [f"{above}/{name}" for name in below]
    space = os.statvfs(root)
    return Held(
        mounts=frozenset(mount.point for mount in mounted(stage.folder)),
        files=frozenset([*files, *folders]),
        rows=_rows(root / "catalog.db"),
        inodes=space.f_files - space.f_ffree,
    )


def _rows(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as catalog:
        tables = [name for (name,) in catalog.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        kept = [name for name in tables if not name.startswith("sqlite_") and name not in _LASTING]
        return {name: catalog.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in kept}
