"""Pods in user namespaces: whom their files seem to belong to, and to whom they do.

Twice: containerd hands the mapping on to a snapshotter with the capability `remap-ids`; for any other it copies and chowns all of an
image's files first, but for image volumes, whose mapping it hands on to everybody.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import debian, documents
from tests.lab.backends import FUSE, LAZY, Backend
from tests.lab.content import Generated
from tests.lab.cri import Cri, Pod, UserIds
from tests.lab.daemon import Daemon, Settings
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.lab.selection import NODE_DEFAULT, Deployed

pytestmark = pytest.mark.system

_WEIGHTS = Generated(5 << 20, seed=60)
_IDS = UserIds(10 << 16), UserIds(11 << 16)


@dataclass(frozen=True, slots=True)
class Stage:
    """A node with an image in which somebody else than root owns a file, and a model, both pulled."""

    registry: Registry
    daemon: Daemon
    cri: Cri
    model: Pushed
    image: str
    volume: str
    file_system: str

    def container(self, name: str, user_ids: UserIds | None) -> tuple[Pod, str]:
        """Running, with the model at /model and the image's files once more, as an image volume, at /other."""
        pod = self.cri.run_pod(name, user_ids=user_ids)
        container = self.cri.create_container(pod, self.image, {"/model": self.volume, "/other": self.image})
        self.cri.start(container)
        return pod, container

    def sh(self, container: str, script: str) -> str:
        ran = self.cri.exec(container, ["/bin/sh", "-c", script])
        assert ran.code == 0, ran.stderr
        return ran.stdout.decode()

    def owners(self, container: str, *paths: str) -> dict[str, str]:
        lines = self.sh(container, f"stat -c '%n %u:%g' {' '.join(paths)}").splitlines()
        return dict(line.split() for line in lines)


@contextmanager
def stage(folder: Path, capabilities: tuple[str, ...], backend: Backend) -> Iterator[Stage]:
    """Nothing may have to be taken down by force."""
    try:
        runc = debian.runc_for_user_namespaces()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    folder.chmod(0o711)  # what the host calls nobody in particular is root inside, and must come by here
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(folder / "registry"))
        image = registry.push.tars([documents.busybox_layer(debian.busybox()), _somebodys_layer()], "lab/owners")
        model = registry.push.model({"w.bin": _WEIGHTS, "nested/config.json": b"{}"})
        settings: Settings = {"fetch": {"prefetch": False}, "mount": backend.setting}
        daemon = Daemon(folder / "daemon", settings, hosts_dir=folder / "containerd/certs.d")
        containerd = Deployed(
            folder / "containerd",
            image.reference,
            daemon.for_containerd,
            NODE_DEFAULT,
            capabilities=capabilities,
            runc=runc,
        )
        containerd.hosts(registry)
        stack.enter_context(daemon)
        stack.enter_context(containerd)
        cri = containerd.cri
        if not cri.runtime_handlers()["runc"]:
            pytest.skip("no user namespaces for pods: containerd says that kernel and runc cannot do them")
        file_system = "erofs" if backend.is_erofs else "fuse.modelvold"
        yield Stage(registry, daemon, cri, model, cri.pull(image.reference), cri.pull(model.reference), file_system)
    assert containerd.leftovers == []


def _somebodys_layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("etc/ours", b"yes"), ("somebodys", b"mine")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            entry.uid = entry.gid = 1000 if name == "somebodys" else 0
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("capabilities", "backend"),
    [((), LAZY), (("remap-ids",), LAZY), (("remap-ids",), FUSE)],
    ids=["chowned", "remap-ids", "remap-ids and fuse"],
)
def test_owners_inside_and_outside(folder: Path, capabilities: tuple[str, ...], backend: Backend) -> None:
    """Inside all is as in the image, and what root writes is root's; outside it is the pod's own ids'. Pods with other ids, and those
    without, read the same model from the same file system."""
    with stage(folder, capabilities, backend) as here:
        shifted = [here.container(f"shifted-{ids.first}", ids) for ids in _IDS]
        containers = [container for _, container in (*shifted, here.container("not shifted", None))]
        for container in containers:
            assert here.owners(container, "/", "/etc/ours", "/somebodys") == {
                "/": "0:0",
                "/etc/ours": "0:0",
                "/somebodys": "1000:1000",
            }
            assert here.owners(container, "/other", "/other/etc/ours", "/other/somebodys") == {
                "/other": "0:0",
                "/other/etc/ours": "0:0",
                "/other/somebodys": "1000:1000",
            }
            assert here.owners(container, "/model", "/model/w.bin", "/model/nested/config.json") == {
                "/model": "0:0",
                "/model/w.bin": "0:0",
                "/model/nested/config.json": "0:0",
            }
            said = here.sh(container, "cat /etc/ours /other/etc/ours /model/nested/config.json; sha256sum /model/w.bin")
            assert said.split() == ["yesyes{}" + here.model.layers["w.bin"].removeprefix("sha256:"), "/model/w.bin"]
        assert here.registry.bytes_of(here.model.layers["w.bin"]) == _WEIGHTS.size
        assert len({here.sh(container, "stat -c %d /model") for container in containers}) == 1

        for ids, (_, container) in zip(_IDS, shifted, strict=True):
            assert here.sh(container, "cat /proc/self/uid_map").split() == ["0", str(ids.first), str(ids.length)]
            _is_guarded(here, container)
            here.sh(container, "echo more >>/etc/ours; echo new >/new; mkdir /ours; echo x >/ours/x; rm /somebodys")
            assert here.owners(container, "/etc/ours", "/new", "/ours/x") == {
                "/etc/ours": "0:0",
                "/new": "0:0",
                "/ours/x": "0:0",
            }
        written = sorted((path.stat().st_uid, path.stat().st_gid) for path in _written(here, "new"))
        assert written == [(ids.first, ids.first) for ids in _IDS]
        assert here.sh(containers[-1], "cat /etc/ours /somebodys") == "yesmine"


def _is_guarded(here: Stage, container: str) -> None:
    lines = [
        line for line in here.sh(container, "cat /proc/self/mountinfo").splitlines() if line.split()[4] == "/model"
    ]
    assert [line.partition(" - ")[2].split()[0] for line in lines] == [here.file_system]
    assert {"ro", "nosuid", "nodev", "idmapped"} <= set(lines[0].split()[5].split(","))
    for refused in ("touch /model/new", "echo x >>/model/w.bin"):
        ran = here.cri.exec(container, ["/bin/sh", "-c", refused])
        assert b"Read-only file system" in ran.stderr


def _written(here: Stage, name: str) -> list[Path]:
    return list((here.daemon.root / "snapshots").glob(f"*/fs/{name}"))
