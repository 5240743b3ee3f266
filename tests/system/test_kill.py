"""Whoever is killed, no reader gets a wrong byte: EIO while the daemon is dead, right bytes on the same descriptors
after.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.containerd import Containerd
from tests.lab.content import Generated, blocks_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.program import wait_until
from tests.lab.reader import Piece, Reader, check, random_pieces
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

_MIB = 1 << 20
_SEGMENT = 16 * _MIB
_FILES = {f"weights/model-{n}.safetensors": Generated(48 * _MIB + 513 * n, 60 + n) for n in range(4)}
#: Prefetched first and never read: so that a fast registry does not fill the model between two looks at it.
_BALLAST = {f"ballast/{n}.bin": Generated(96 * _MIB, 90 + n) for n in range(8)}
_CONTENTS = list(_FILES.values())
_SIZES = [content.size for content in _CONTENTS]


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a file system where lazy mounts work, and gone afterwards."""
    made = needs.lazy_folder()
    try:
        if reason := needs.missing_for_lazy(made):
            pytest.skip(reason)
        with settled(made):
            yield made
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        unmount_below(made)
        shutil.rmtree(made, ignore_errors=True)


def source(file: int, at: int, length: int) -> bytes:
    return _CONTENTS[file].at(at, length)


def read_all(reader: Reader, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    return check(pieces, reader.read(pieces), source)


def status(daemon: Daemon) -> dict[str, Any]:
    ran = daemon.cli("status", "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def cli(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words)
    assert ran.returncode == 0, f"{words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"


def present(daemon: Daemon) -> int:
    """Bytes in the store's segment files, as the file system has them: to be asked of the dead too."""
    return sum(path.stat().st_size for path in (daemon.root / "content").rglob("*") if path.is_file())


def mounts_of(daemon: Daemon, *others: Path) -> dict[str, int]:
    """Mount ids by point."""
    found = [mount for place in (daemon.run, *others) for mount in mounted(place)]
    return {mount.point: mount.id for mount in found}


@contextmanager
def silent(registry: Registry) -> Iterator[None]:
    """The registry accepts and says nothing, in the middle of whatever it was sending."""
    os.kill(registry.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(registry.pid, signal.SIGCONT)


def test_same_descriptors_after_kill9(folder: Path) -> None:
    """Must-show 6: with more than 30 % missing the daemon is killed; on one set of descriptors and mappings missing
    bytes are EIO while it is dead and right after its restart, present ones right throughout; the mount is the same.
    """
    here = folder / "mnt"
    here.mkdir()
    with Registry(folder / "registry") as registry:
        pushed = registry.push.model(_FILES)
        with Daemon(folder / "daemon", {"fetch": {"prefetch": False}}) as daemon:
            cli(daemon, "mount", pushed.reference, here)
            before = mounts_of(daemon, here)
            assert len(before) == 3
            with Reader([here / path for path in _FILES]) as reader:
                # The first segment of each file, and one in the middle of the last.
                begun = [Piece(n, 3 * _MIB, 4096) for n in range(4)] + [Piece(3, 20 * _MIB, 4096, is_mapped=True)]
                assert read_all(reader, begun) == (begun, [])
                assert wait_until(lambda: status(daemon)["volumes"][0]["segments_complete"] == 5)
                kept = status(daemon)["volumes"][0]
                assert kept["durable"] == kept["present"] == 5 * _SEGMENT
                assert kept["present"] <= 0.7 * kept["size"]

                daemon.kill9()
                assert mounts_of(daemon, here) == before
                pieces = random_pieces(random.Random(6), _SIZES, 12)
                right, denied = read_all(reader, pieces)
                assert any(piece.is_mapped for piece in denied)
                assert any(not piece.is_mapped for piece in denied)
                # What was durable is read with nobody there: segment 0 of every file.
                durable = [
                    Piece(n, at, _MIB, is_mapped=at % 2 == 0) for n in range(4) for at in range(0, 14 * _MIB, _MIB)
                ]
                assert read_all(reader, durable) == (durable, [])
                assert right

                registry.forget()
                daemon.start()
                assert mounts_of(daemon, here) == before
                assert read_all(reader, denied) == (denied, [])
                assert read_all(reader, pieces) == (pieces, [])
                served = sum(request.bytes for request in registry.blob_requests())
                assert served == kept["size"] - kept["present"]
            assert status(daemon)["volumes"][0]["present"] == pushed.size
            cli(daemon, "umount", here)
            cli(daemon, "rm", pushed.reference)
            assert present(daemon) == 0
        assert [left for left in daemon.leftovers if "/volumes/" in left] == []


def test_kills_while_transfers_append_and_readers_wait(folder: Path) -> None:
    """Must-show 6: killed again and again in the middle of transfers, with more than 30 % missing, the daemon leaves
    no wrong byte: who waits gets EIO, a restart needs no registry, and in the end every byte is there, verified.
    """
    here = folder / "mnt"
    here.mkdir()
    with Registry(folder / "registry") as registry:
        pushed = registry.push.model({**_BALLAST, **_FILES})
        with Daemon(folder / "daemon", {"fetch": {"prefetch": True, "connections": 2}}) as daemon, ExitStack() as still:
            cli(daemon, "mount", pushed.reference, here)
            still.enter_context(silent(registry))
            before = mounts_of(daemon, here)
            with Reader([here / path for path in _FILES]) as reader:
                missed: list[Piece] = []
                for number in range(3):
                    grown = present(daemon) + 8 * _MIB
                    pieces = random_pieces(random.Random(number), _SIZES, 8)
                    reader.ask(pieces)
                    still.close()
                    assert wait_until(lambda least=grown: present(daemon) >= least)  # type: ignore[misc]
                    still.enter_context(silent(registry))
                    assert wait_until(lambda: bool(status(daemon)["volumes"][0]["waiting"]))
                    daemon.kill9()
                    assert 1 - present(daemon) / pushed.size >= 0.3
                    _, denied = check(pieces, reader.answers(), source)
                    assert denied
                    missed += denied
                    daemon.start()
                    assert mounts_of(daemon, here) == before
                still.close()
                assert read_all(reader, missed) == (missed, [])
                cli(daemon, "pull", pushed.reference)
                pieces = random_pieces(random.Random(99), _SIZES, 8)
                assert read_all(reader, pieces) == (pieces, [])
            assert status(daemon)["volumes"][0]["state"] == "verified"
            cli(daemon, "umount", here)
            cli(daemon, "rm", pushed.reference)


def test_a_pod_survives_daemon_and_containerd(folder: Path) -> None:
    """Must-show 6: with a pod running, kill -9 of the daemon and of containerd: the container goes on, gets
    EIO while the daemon is dead, and then reads every byte right from the mount it had.
    """
    with Registry(folder / "registry") as registry:
        pushed, image = registry.push.model(_FILES), registry.push.image()
        daemon = Daemon(folder / "daemon", {"fetch": {"prefetch": False}}, hosts_dir=folder / "c/certs.d")
        containerd = Containerd(folder / "c", image.reference, daemon.for_containerd)
        containerd.hosts(registry)
        with daemon, containerd:
            cri = containerd.cri
            volume, ordinary = cri.pull(pushed.reference), cri.pull(image.reference)
            pod = cri.run_pod()
            container = cri.create_container(pod, ordinary, {"/model": volume})
            cri.start(container)
            first, *_, last = _FILES
            assert cri.exec(container, ["/bin/head", "-c", "4096", f"/model/{first}"]).stdout == source(0, 0, 4096)
            before = mounts_of(daemon)
            [point] = [point for point in before if "/volumes/" in point]
            with Reader([Path(point) / path for path in _FILES]) as reader:
                daemon.kill9()
                containerd.kill()
                assert present(daemon) <= 0.7 * pushed.size
                pieces = random_pieces(random.Random(7), _SIZES, 8)
                _, denied = read_all(reader, pieces)
                assert denied
                containerd.start()
                assert cri.is_running(container)
                refused = cri.exec(container, ["/bin/head", "-c", "100", f"/model/{last}"])
                assert (refused.stdout, refused.code) == (b"", 1)
                assert b"Input/output error" in refused.stderr
                daemon.start()
                assert mounts_of(daemon) == before
                assert read_all(reader, denied) == (denied, [])
            ran = cri.exec(container, ["/bin/sh", "-c", "cd /model && find . -type f -exec sha256sum {} +"])
            assert ran.code == 0, ran.stderr
            assert listed(ran.stdout) == {path: summed(content) for path, content in _FILES.items()}
            assert cri.exec(container, ["/bin/tail", "-c", "100", f"/model/{last}"]).stdout == source(
                3, _SIZES[3] - 100, 100
            )
            cri.remove_pod(pod)
            cri.remove_image(volume)
        assert containerd.leftovers == []


def summed(content: Generated) -> str:
    digest = hashlib.sha256()
    for block in blocks_of(content):
        digest.update(block)
    return digest.hexdigest()


def listed(lines: bytes) -> dict[str, str]:
    """`sha256sum`'s lines, by path."""
    pairs = (line.split(maxsplit=1) for line in lines.decode().splitlines())
    return {path.removeprefix("./"): digest for digest, path in pairs}
