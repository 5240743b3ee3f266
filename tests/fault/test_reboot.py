"""Another start: after a reboot, on a disk that fails, without a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.killer import Board
from tests.fault.node import Model, Node, push
from tests.fault.remains import part_of
from tests.fault.tally import Tally
from tests.lab.content import Generated, size_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.program import wait_until
from tests.lab.reader import Piece, Reader
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

_MIB = 1 << 20
_POD = "k8s.io/{}/image-volumes/pod/model"


def _reboot(daemon: Daemon) -> None:
    """What a machine's end takes with it: the daemon, every mount, and `/run`."""
    daemon.kill9()
    unmount_below(daemon.run)
    shutil.rmtree(daemon.run)


def _source(model: Model) -> Callable[[int, int, int], bytes]:
    contents = list(model.files.values())
    return lambda file, at, length: part_of(contents[file], at, length)


def _all_of(model: Model) -> list[Piece]:
    return [
        Piece(n, at, min(_MIB, size_of(content) - at))
        for n, content in enumerate(model.files.values())
        for at in range(0, size_of(content), _MIB)
    ]


def test_mounts_are_there_again_without_a_registry(folder: Path, tally: Tally) -> None:
    """Must-show 5: unrecorded segments are gone, the rest is served offline: all of the complete model, of the other one what was
    recorded, and EIO for the rest. The mounts are there when the snapshot service answers."""
    with Registry(folder / "registry") as registry, Board(folder / "board") as board:
        models = push(registry)
        with Node(folder, registry, models, board, tally) as node:
            for name in ("one", "three"):
                node.ask_facade(name)
                node.pull_by_containerd(name)
                node.use(name, _POD.format(name))
            node.pull("one")
            [three] = [volume for volume in node.report().volumes if volume.id == models["three"].volume]
            at = Path(three.path)
            first = [Piece(0, 0, _MIB), Piece(1, 0, 4096)]
            with Reader([at / path for path in models["three"].files]) as reader:
                assert tally.read(first, reader.read(first), _source(models["three"]))[0] == first
            assert wait_until(lambda: _volume(node, "three").durable == _volume(node, "three").present > 0, 20)
            before = {name: _volume(node, name).durable for name in ("one", "three")}
            _reboot(node.daemon)
            tally.kill()
            registry.stop()
            [missing] = [path for path in _segments(node.root) if path.stat().st_size == 0][:1]
            missing.write_bytes(os.urandom(4096))
            node.daemon.configure("fetch", deadline=0.5)
            node.daemon.start()
            points = {mount.point for mount in mounted(node.daemon.run)}
            for name in ("one", "three"):
                assert str(node.daemon.run / "volumes" / models[name].volume) in points, (
                    "mounted when the socket answers"
                )
                assert _volume(node, name).durable == before[name]
            assert missing.stat().st_size == 0, "what was in no record is gone"
            assert _read_all(node, "one", tally)[1] == []
            right, denied = _read_all(node, "three", tally)
            assert right
            assert denied
            tally.restart()
            registry.start()
            assert node.pull("three")
            assert _read_all(node, "three", tally)[1] == []
            for name in ("one", "three"):
                node.give_back(_POD.format(name), node.target(name))
            node.collect()


def _read_all(node: Node, name: str, tally: Tally) -> tuple[list[Piece], list[Piece]]:
    """As a pod that comes now; what was right, and what was denied."""
    model, pieces = node.models[name], _all_of(node.models[name])
    with Reader([node.use(name, _POD.format(name)) / path for path in model.files]) as reader:
        return tally.read(pieces, reader.read(pieces), _source(model))


def _volume(node: Node, name: str):  # type: ignore[no-untyped-def]
    return next(volume for volume in node.report().volumes if volume.id == node.models[name].volume)


def _segments(root: Path) -> list[Path]:
    return sorted(path for path in (root / "content").rglob("[0-9]*") if path.is_file())


@contextmanager
def _failing_disk(folder: Path, backing: int) -> Iterator[Path]:
    """ext4 on a loop device whose backing, a tmpfs, takes so many bytes: writes succeed, and fail when they are synced."""
    below, at = folder / "below", folder / "failing"
    below.mkdir()
    at.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={backing}", "none", below)
        with (below / "image").open("xb") as file:
            file.truncate(512 * _MIB)
        _run("mkfs.ext4", "-q", "-F", below / "image")
        _run("mount", "-o", "loop", below / "image", at)
        yield at
    finally:
        unmount_below(at)
        unmount_below(below)


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=30)


@pytest.mark.parametrize("backing", [50 * _MIB, 80 * _MIB, 130 * _MIB], ids=["early", "middle", "late"])
def test_a_disk_that_fails_serves_no_zeros(folder: Path, tally: Tally, backing: int) -> None:
    """Must-show 5: fdatasync fails in the middle. What was recorded is read on, the rest ends with EIO, never with zeros; `status`
    and the log say failing; nothing new is promised."""
    here = folder / "mnt"
    here.mkdir()
    files = {f"{n}.bin": Generated(32 * _MIB, 700 + n) for n in range(5)}
    contents = list(files.values())
    with Registry(folder / "registry") as registry, _failing_disk(folder, backing) as disk:
        model = registry.push.model(files)
        other = registry.push.model({"x.bin": Generated(_MIB, 800)}, "models/other")
        settings = {"store": {"root": str(disk / "store")}, "fetch": {"deadline": 1, "prefetch": False}}
        with Daemon(folder / "daemon", settings) as daemon:
            assert daemon.cli("mount", model.reference, here).returncode == 0, daemon.log_text()
            pieces = [Piece(n, at, _MIB) for n in range(5) for at in range(0, 32 * _MIB, 4 * _MIB)]
            with Reader([here / path for path in files]) as reader:
                for _ in range(2):
                    right, denied = tally.read(
                        pieces, reader.read(pieces), lambda file, at, length: contents[file].at(at, length)
                    )
                    _forget_pages(here)
            tally.fault()
            assert right, "what was recorded is read"
            assert denied, "what was lost is an error"
            said = daemon.cli("status")
            assert "failing" in said.stdout, said.stdout
            assert "store failing" in daemon.log_text()
            refused = daemon.cli("pull", other.reference)
            assert refused.returncode == 1
            assert "failing" in refused.stderr, refused.stderr
            daemon.cli("umount", here)
            daemon.kill9()
            unmount_below(daemon.run)


def _forget_pages(folder: Path) -> None:
    """The kernel's copies of what was read, and of what was written to the disk below: both are read anew."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    Path("/proc/sys/vm/drop_caches").write_text("1")
