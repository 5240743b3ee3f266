"""The life of a node: switched to modelvold and back with pods running, restarted in any order, its images removed while they are
used; what containerd says of space and leases.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.lab.containerd import Containerd
from tests.lab.content import Content, Generated
from tests.lab.cri import Cri, Pod
from tests.lab.daemon import Daemon, Settings
from tests.lab.gen.cri_pb2 import FilesystemUsage
from tests.lab.mounts import mounted
from tests.lab.place import lazy_place
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.lab.systemd import Systemd
from tests.system.node import ok, segments_of, status_of

pytestmark = pytest.mark.system

OURS, THEIRS = "modelvold", "overlayfs"
_CRI = "k8s.io"
_MIB = 1 << 20
#: A layer of its own each, so that each is missing until it is read.
_FILES: dict[str, Content] = {f"part-{n:02}": Generated(2 * _MIB + n, 700 + n) for n in range(16)}
_IMAGE_FILES = {"/words": b"of the layer\n", "/large": bytes(3 * _MIB)}


class Stage:
    """A node whose parts a test starts and ends: the daemon as systemd runs it, and a containerd that may use it."""

    def __init__(self, folder: Path, life: ExitStack, *, with_ours: bool = True, snapshotter: str = "") -> None:
        self.folder = folder
        self.registry = life.enter_context(Registry(folder / "registry"))
        self.image: Pushed = self.registry.push.image(files=_IMAGE_FILES)
        self.model = self.registry.push.model(_FILES)
        service = life.enter_context(Systemd(folder))
        settings: Settings = {"fetch": {"prefetch": False}}
        self.daemon = Daemon(folder / "daemon", settings, hosts_dir=folder / "c/certs.d", service=service)
        ours = self.daemon.for_containerd if with_ours else None
        self.containerd = Containerd(folder / "c", self.image.reference, ours, snapshotter=snapshotter, stats_period=1)
        self.containerd.hosts(self.registry)
        life.callback(self._check_unforced)
        if with_ours:
            life.enter_context(self.daemon)
        life.enter_context(self.containerd)
        self._unread = iter(_FILES)

    @property
    def cri(self) -> Cri:
        return self.containerd.cri

    def connected(self) -> None:
        """Returns when containerd has its connection to the daemon again: after one that failed it lets up to 3 s pass, and says
        UNAVAILABLE meanwhile; kubelet asks again."""
        words = ("snapshots", "--snapshotter", OURS, "ls")
        assert wait_until(lambda: self.containerd.try_ctr(*words, namespace=_CRI).returncode == 0)

    def use(self, snapshotter: str) -> None:
        """CRI's default from now on."""
        self.containerd.snapshotter = snapshotter
        self.containerd.restart()

    def run(self, name: str, volume: str = "", command: Sequence[str] = ("/bin/sleep", "2147483647")) -> Running:
        """A pod of the image, with the model at /model if its id is given."""
        pod = self.cri.run_pod(name)
        volumes = {"/model": volume} if volume else None
        container = self.cri.create_container(pod, self.image.reference, volumes, command)
        self.cri.start(container)
        return Running(self, pod, container)

    def unread(self) -> str:
        """A file of the model of which nothing is here."""
        return next(self._unread)

    @contextmanager
    def silent_registry(self) -> Iterator[None]:
        """It accepts, and says nothing."""
        os.kill(self.registry.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.registry.pid, signal.SIGCONT)

    def snapshots(self, snapshotter: str = OURS) -> dict[str, str]:
        """containerd's own view of CRI's: kinds by name."""
        ours = ("--snapshotter", snapshotter)
        lines = self.containerd.ctr("snapshots", *ours, "ls", namespace=_CRI).splitlines()[1:]
        return {line.split()[0]: line.split()[-1] for line in lines}

    def folders(self) -> list[str]:
        """Of snapshots in the store."""
        return sorted(path.name for path in (self.daemon.root / "snapshots").iterdir() if path.name != "removed")

    def remove_images(self) -> None:
        for image in self.cri.list_images():
            self.cri.remove_image(image.id)

    def check_gone(self) -> None:
        """Pods and images are removed: so is all that they had of the daemon, but for the model's content; and that, asked for."""
        self.containerd.collect()
        assert self.snapshots() == self.snapshots(THEIRS) == {}
        assert wait_until(lambda: self.folders() == [], 10), self.folders()
        assert [path.name for path in (self.daemon.root / "snapshots/removed").iterdir()] == []
        here = [mount.point for mount in mounted(self.folder)]
        assert [point for point in here if "volume" in point or "/rootfs" in point or "snapshots" in point] == []
        ok(self.daemon, "gc")
        assert segments_of(self.daemon) == []
        assert list((self.daemon.root / "volumes").iterdir()) == []

    def _check_unforced(self) -> None:
        assert self.containerd.leftovers == []


@dataclass(frozen=True, slots=True)
class Running:
    """A pod's only container."""

    stage: Stage
    pod: Pod
    container: str

    def sh(self, script: str) -> str:
        ran = self.stage.cri.exec(self.container, ["/bin/sh", "-c", script])
        assert ran.code == 0, ran.stderr
        return ran.stdout.decode()

    def check_goes_on(self) -> None:
        """It runs, and reads and writes its own root."""
        assert self.stage.cri.is_running(self.container)
        assert self.sh("cat /words; echo more >>/written; wc -l </written").startswith("of the layer\n")

    def check_reads(self, path: str) -> None:
        assert self.sh(f"sha256sum /model/{path}").split()[0] == _sum(path)

    def snapshotter(self) -> str:
        """In which containerd has its root."""
        found = json.loads(self.stage.containerd.ctr("containers", "info", self.container, namespace=_CRI))
        return str(found["Snapshotter"])

    def remove(self) -> None:
        self.stage.cri.remove_pod(self.pod)


def _sum(path: str) -> str:
    content = _FILES[path]
    assert isinstance(content, Generated)
    digest = hashlib.sha256()
    for block in content.blocks():
        digest.update(block)
    return digest.hexdigest()


# -- switched on and off


@pytest.fixture
def place() -> Iterator[Path]:
    with lazy_place() as folder:
        yield folder


def test_an_image_pulled_before_modelvold_was_there(place: Path) -> None:
    """Pulled into overlayfs by a containerd that knew nothing of modelvold: it runs on modelvold, and nothing is pulled again."""
    with ExitStack() as life:
        stage = Stage(place, life, with_ours=False)
        stage.cri.pull(stage.image.reference)
        before = stage.run("before")
        stage.registry.stop()
        with stage.daemon:
            stage.containerd.modelvold = stage.daemon.for_containerd
            stage.containerd.restart()
            after = stage.run("after")
            assert [before.snapshotter(), after.snapshotter()] == [THEIRS, OURS]
            for running in (before, after):
                running.check_goes_on()
            for running in (before, after):
                running.remove()
            stage.remove_images()
            stage.check_gone()


def test_a_node_is_switched_on_and_off(place: Path) -> None:
    """With pods running each time: they go on, on what they have; new ones use what CRI is told now; all of them end cleanly. Then
    containerd does without the daemon altogether."""
    with ExitStack() as life:
        stage = Stage(place, life, snapshotter=THEIRS)
        stage.cri.pull(stage.image.reference)
        old = stage.run("old")
        stage.use(OURS)
        volume = stage.cri.pull(stage.model.reference)
        new, gone = stage.run("new", volume), stage.run("gone", volume)
        new.check_reads(stage.unread())
        old.check_goes_on()
        gone.remove()

        stage.use(THEIRS)
        newest = stage.run("newest")
        assert [each.snapshotter() for each in (old, new, newest)] == [THEIRS, OURS, THEIRS]
        for each in (old, new, newest):
            each.check_goes_on()
        new.check_reads(stage.unread())
        for each in (new, old, newest):
            each.remove()
        stage.remove_images()
        stage.check_gone()

        stage.containerd.modelvold = None
        stage.containerd.restart()
        stage.daemon.stop()
        last = stage.run("last")
        last.check_goes_on()
        last.remove()


def test_modelvold_is_taken_off_with_pods_running(place: Path) -> None:
    """It is said before and at the end what will happen, and that happens: what is here is read on, a read of what is not fails, nothing
    new starts, pods end. Those that end when containerd's configuration has no modelvold any more leave their records in it."""
    with ExitStack() as life:
        stage = Stage(place, life)
        stage.cri.pull(stage.image.reference)
        volume = stage.cri.pull(stage.model.reference)
        first, missing = stage.unread(), stage.unread()
        ended, late, last = (stage.run(name, volume) for name in ("ended", "late", "last"))
        ended.check_reads(first)
        said = " ".join(ok(stage.daemon, "status").stdout.split())
        in_use = sum(kind != "Committed" for kind in stage.snapshots().values())
        assert in_use == 3 * 3  # of each pod its sandbox, its container, its image volume
        assert f"{in_use} of them of containers and image volumes, which go on without modelvold" in said
        assert "used by: snapshot k8s.io/" in said

        stage.daemon.stop()
        [model, snapshots] = [line for line in stage.daemon.log_text().splitlines() if " leave " in line]
        assert f"reference={stage.model.reference} users=4" in model
        assert "reads of what is missing fail until modelvold runs again" in model
        assert f"in_use={in_use} " in snapshots
        assert "nothing new starts on them until modelvold runs again" in snapshots
        for each in (ended, late, last):
            each.check_goes_on()
            each.check_reads(first)
        ran = stage.cri.exec(last.container, ["/bin/cat", f"/model/{missing}"])
        assert b"Input/output error" in ran.stderr
        with pytest.raises(grpc.RpcError, match=r"modelvold\.sock"):
            stage.run("refused")
        ended.remove()

        stage.containerd.modelvold = None
        stage.use(THEIRS)
        late.check_goes_on()
        late.remove()
        stage.cri.pull(stage.image.reference)
        other = stage.run("other")
        assert other.snapshotter() == THEIRS
        other.remove()

        stage.containerd.modelvold = stage.daemon.for_containerd
        stage.daemon.start()
        stage.use(OURS)
        stage.connected()
        last.check_reads(missing)
        last.remove()
        stage.remove_images()
        stage.containerd.collect()
        records = stage.containerd.ctr("containers", "ls", "-q", namespace=_CRI).split()
        assert late.container in records
        assert {ended.container, last.container}.isdisjoint(records)
        stage.containerd.ctr("containers", "rm", *records, namespace=_CRI)
        stage.check_gone()


# -- restarted


_ORDERS: dict[str, Sequence[str]] = {
    "daemon": ["-d", "+d"],
    "containerd": ["-c", "+c"],
    "one then the other": ["-d", "+d", "-c", "+c"],
    "the other way round": ["-c", "+c", "-d", "+d"],
    "both, daemon first": ["-c", "-d", "+d", "+c"],
    "both, containerd first": ["-d", "-c", "+c", "+d"],
}


def test_restarts_in_any_order(place: Path) -> None:
    """With a pod that has the model mounted: after each it runs, reads what was here and what was missing, and so does a new one."""
    with ExitStack() as life:
        stage = Stage(place, life)
        stage.cri.pull(stage.image.reference)
        volume = stage.cri.pull(stage.model.reference)
        running = stage.run("throughout", volume)
        first = stage.unread()
        running.check_reads(first)
        steps = {
            "-d": stage.daemon.stop,
            "+d": stage.daemon.start,
            "-c": stage.containerd.stop,
            "+c": stage.containerd.start,
        }
        for name, order in _ORDERS.items():
            for step in order:
                steps[step]()
            running.check_goes_on()
            running.check_reads(first)
            running.check_reads(stage.unread())
            stage.connected()
            volume = stage.cri.pull(stage.model.reference)
            stage.cri.pull(stage.image.reference)
            other = stage.run(name.replace(" ", "-").replace(",", ""), volume)
            other.check_reads(stage.unread())
            other.remove()
        running.remove()
        stage.remove_images()
        stage.check_gone()


def test_a_read_that_waits_outlives_restarts(place: Path) -> None:
    """A container waits for a missing byte while the daemon is restarted as systemd does it, and containerd too: it gets the byte."""
    with ExitStack() as life:
        stage = Stage(place, life)
        stage.cri.pull(stage.image.reference)
        volume = stage.cri.pull(stage.model.reference)
        path = stage.unread()
        with stage.silent_registry():
            command = ["/bin/sh", "-c", f"sha256sum /model/{path} >/sum 2>&1; exec sleep 2147483647"]
            running = stage.run("waiting", volume, command)
            assert wait_until(lambda: bool(status_of(stage.daemon)["volumes"][0]["waiting"]))
            stage.daemon.restart()
            stage.containerd.restart()
            stage.daemon.restart()
            assert status_of(stage.daemon)["volumes"][0]["waiting"]
            assert running.sh("cat /sum") == ""
        stage.connected()
        assert wait_until(lambda: running.sh("cat /sum") != "")
        assert running.sh("cat /sum").split()[0] == _sum(path)
        running.remove()
        stage.remove_images()
        stage.check_gone()


def test_containerd_starts_without_the_daemon(place: Path) -> None:
    """It comes up, and running pods go on with what is here; a new one is refused until the daemon answers."""
    with ExitStack() as life:
        stage = Stage(place, life)
        stage.cri.pull(stage.image.reference)
        volume = stage.cri.pull(stage.model.reference)
        running = stage.run("throughout", volume)
        first = stage.unread()
        running.check_reads(first)
        stage.daemon.stop()
        stage.containerd.restart()
        running.check_goes_on()
        running.check_reads(first)
        with pytest.raises(grpc.RpcError):
            stage.run("too-early")
        stage.daemon.start()
        running.check_reads(stage.unread())
        stage.connected()
        # It has forgotten the images that it could not ask about; kubelet, told that there are none, has them pulled.
        volume = stage.cri.pull(stage.model.reference)
        stage.cri.pull(stage.image.reference)
        other = stage.run("in-time", volume)
        other.check_reads(stage.unread())
        for pod in stage.cri.list_pods():
            stage.cri.remove_pod(pod)
        stage.remove_images()
        stage.check_gone()


# -- in use


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    """For what needs no restart; whoever uses it leaves no pod."""
    with lazy_place() as folder, ExitStack() as life:
        stage = Stage(folder, life)
        yield stage
        stage.remove_images()
        stage.check_gone()


def test_images_are_removed_while_a_pod_uses_them(shared: Stage) -> None:
    """The pod's own and the model's: it reads on, missing bytes too; what they took goes with the pod."""
    shared.cri.pull(shared.image.reference)
    volume = shared.cri.pull(shared.model.reference)
    running = shared.run("using", volume)
    running.check_reads(shared.unread())
    shared.cri.remove_image(volume)
    shared.cri.remove_image(shared.image.reference)
    shared.containerd.collect()
    assert shared.cri.image_status(volume) is None
    running.check_goes_on()
    running.check_reads(shared.unread())
    assert "in use" in shared.daemon.cli("rm", shared.model.reference).stderr
    assert "Committed" in shared.snapshots().values()
    running.remove()
    shared.remove_images()
    shared.check_gone()


def test_an_image_volume_hangs_on_its_sandboxs_lease(shared: Stage) -> None:
    """containerd collects garbage around it; without the lease it goes itself, and even then the reader reads on."""
    shared.cri.pull(shared.image.reference)
    volume = shared.cri.pull(shared.model.reference)
    running = shared.run("leased", volume)
    [key] = [name for name in shared.snapshots() if f"/image-volumes/{running.pod.id}/" in name]
    leases = shared.containerd.ctr("leases", "ls", "-q", namespace=_CRI).split()
    assert running.pod.id in leases
    shared.containerd.collect()
    assert shared.snapshots()[key] == "Active"
    shared.containerd.ctr("leases", "rm", "--sync", running.pod.id, namespace=_CRI)
    assert key not in shared.snapshots()
    running.check_goes_on()
    running.check_reads(shared.unread())
    running.remove()


def test_what_the_node_says_of_space(shared: Stage) -> None:
    """Images lie in the store; they take at least what their layers do, and a model adds nothing, read or not. What a container takes
    is what it has written."""
    shared.cri.pull(shared.image.reference)
    # Not as containerd had it last: what a pod before this had would be counted.
    ordinary = info_of(shared, least=sum(map(len, _IMAGE_FILES.values())), since=time.time_ns())
    assert Path(ordinary.fs_id.mountpoint).samefile(shared.daemon.root)
    assert ordinary.used_bytes.value < 2 * shared.image.size
    assert ordinary.inodes_used.value > 30

    volume = shared.cri.pull(shared.model.reference)
    running = shared.run("counted", volume)
    running.check_reads(shared.unread())
    running.check_reads(shared.unread())
    running.sh("dd if=/dev/zero of=/filled bs=1024 count=5120 2>/dev/null")
    written = info_of(shared, least=ordinary.used_bytes.value + 5 * _MIB)
    assert written.used_bytes.value < ordinary.used_bytes.value + 6 * _MIB
    later = info_of(shared, since=time.time_ns())
    assert abs(later.used_bytes.value - written.used_bytes.value) < _MIB / 16
    layer = shared.cri.stats(running.container).writable_layer
    assert Path(layer.fs_id.mountpoint).samefile(shared.daemon.root)
    assert 5 * _MIB <= layer.used_bytes.value < 6 * _MIB
    running.remove()
    info_of(shared, most=ordinary.used_bytes.value + _MIB)


def info_of(stage: Stage, *, least: int = 0, most: int = 1 << 60, since: int = 0) -> FilesystemUsage:
    """ImageFsInfo, once it says so many used bytes, and what was looked at after `since` (nanoseconds)."""
    found: list[FilesystemUsage] = []

    def is_so() -> bool:
        [info] = found[:] = stage.cri.image_fs_info()
        return info.timestamp > since and least <= info.used_bytes.value <= most

    assert wait_until(is_so), found
    return found[0]
