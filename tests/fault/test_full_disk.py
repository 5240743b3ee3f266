"""A disk that is too small, or full: models larger than it are read through it, nothing hangs, and room is used when there is some."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fault.tally import Tally
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.mounts import unmount_below
from tests.lab.program import wait_until
from tests.lab.reader import Piece, Reader
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

_MIB = 1 << 20
_STEP = 4 * _MIB


def _run(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}: {ran.stderr}"
    return ran.stdout


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Path]:
    """ext4 of `size` bytes on a loop device."""
    image, at = folder / "small.img", folder / "small"
    at.mkdir()
    with image.open("xb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", image)
    _run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        unmount_below(at)
        image.unlink()


def _status(daemon: Daemon) -> dict[str, Any]:
    ran = daemon.cli("status", "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _cli(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words)
    assert ran.returncode == 0, f"{words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"


def _said(daemon: Daemon) -> str:
    """What `status` tells a person, on one line."""
    return " ".join(daemon.cli("status").stdout.split())


def _source(files: dict[str, Generated]) -> Callable[[int, int, int], bytes]:
    contents = list(files.values())
    return lambda file, at, length: contents[file].at(at, length)


def _digests(contents: list[Generated]) -> dict[Piece, str]:
    """Of every piece of every file, so that nobody has to make them again for each reader."""
    return {
        Piece(n, at, min(_STEP, content.size - at)): hashlib.sha256(content.at(at, _STEP)).hexdigest()
        for n, content in enumerate(contents)
        for at in range(0, content.size, _STEP)
    }


def _read_all(tally: Tally, reader: Reader, right: dict[Piece, str], seed: int, *, is_mapped: bool) -> None:
    """Each file from its start, the files in an order that the seed gives."""
    order = random.Random(seed)
    files = sorted({piece.file for piece in right}, key=lambda _: order.random())
    pieces = [piece for file in files for piece in right if piece.file == file]
    asked = [Piece(p.file, p.offset, p.length, is_mapped=is_mapped) for p in pieces]
    for piece, answer in zip(pieces, reader.read(asked), strict=True):
        tally.compare(answer.sha256.encode(), right[piece].encode(), (piece, answer))
        tally.compared += piece.length


def test_a_model_four_times_the_store(folder: Path, tally: Tally, rounds: int) -> None:
    """Must-show 3: a store of 256 MiB and a model of 1 GiB, read fully, three times, by four readers, half of them mapped; then room
    is given, and the model becomes complete by itself. The image is larger, and others hold all but 256 MiB of it, since growing a
    mounted file system takes a capability that not every machine's root has. In the long form each reader has an order of its own."""
    here = folder / "mnt"
    here.mkdir()
    files = {f"model-{n}.safetensors": Generated(128 * _MIB, 400 + n) for n in range(8)}
    right = _digests(list(files.values()))
    with Registry(folder / "registry") as registry, _disk(folder, 2 << 30) as disk:
        _leave(disk / "others", 256 * _MIB)
        model = registry.push.model(files)
        settings = {"store": {"root": str(disk / "store"), "reserve": ""}}
        with Daemon(folder / "daemon", settings) as daemon:
            _cli(daemon, "mount", model.reference, here)
            assert wait_until(lambda: _status(daemon)["volumes"][0]["state"] == "streaming", 60)
            failures: list[BaseException] = []

            def go(number: int) -> None:
                try:
                    with Reader([here / path for path in files]) as reader:
                        for time in range(3):
                            seed = time if rounds == 1 else time + 3 * number
                            _read_all(tally, reader, right, seed, is_mapped=number % 2 == 0)
                            _forget_pages(here)
                except BaseException as error:  # told below
                    failures.append(error)

            threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(600)
            assert failures == []
            node = _status(daemon)["node"]
            assert node["reads_denied"] == 0
            assert node["evicted"] > model.size
            assert node["store_used"] < 256 * _MIB
            assert node["store_state"] == "ok"
            assert "does not fit" in _said(daemon)
            (disk / "others").unlink()
            assert wait_until(lambda: _status(daemon)["volumes"][0]["state"] == "verified", 60)
            assert "does not fit" not in _said(daemon)
            _cli(daemon, "umount", here)
        tally.fault()


def _leave(path: Path, free: int) -> None:
    """Takes all of the disk but so many bytes."""
    disk = os.statvfs(path.parent)
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - free)


def _forget_pages(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_somebody_else_fills_the_disk(folder: Path, tally: Tally) -> None:
    """Every byte of the disk is taken by others while a model is read: reads end with an error at their deadline, nothing hangs,
    verbs say what is wrong, and when there is room again everything goes on by itself."""
    here = folder / "mnt"
    here.mkdir()
    files = {f"model-{n}.bin": Generated(24 * _MIB, 500 + n) for n in range(3)}
    right = _digests(list(files.values()))
    with Registry(folder / "registry") as registry, _disk(folder, 200 * _MIB) as disk:
        model = registry.push.model(files)
        other = registry.push.model({"other.bin": Generated(_MIB, 600)}, "models/other")
        settings = {
            "store": {"root": str(disk / "store"), "reserve": ""},
            "fetch": {"deadline": 1, "prefetch": False},
        }
        with Daemon(folder / "daemon", settings) as daemon:
            _cli(daemon, "mount", model.reference, here)
            with Reader([here / path for path in files]) as reader:
                _fill(disk / "others")
                tally.fault()
                refused = daemon.cli("pull", model.reference)
                assert refused.returncode == 1
                assert "room" in refused.stderr, refused.stderr
                asked = [Piece(n, 20 * _MIB, 4096) for n in range(3)]
                assert tally.read(asked, reader.read(asked), _source(files))[1] == asked, "EIO after the deadline"
                status = _status(daemon)
                assert "room" in status["volumes"][0]["last_error"]
                assert status["node"]["store_state"] == "ok"
                another = daemon.cli("pull", other.reference)
                assert another.returncode == 1
                assert "room" in another.stderr or "No space" in another.stderr, another.stderr
                _cli(daemon, "pin", model.reference)
                _cli(daemon, "unpin", model.reference)
                (disk / "others").unlink()
                _read_all_after(tally, reader, right)
                _fill(disk / "others")
                _forget_pages(here)
                _cli(daemon, "verify")
                assert tally.read(asked, reader.read(asked), _source(files))[0] == asked, "what is here is read"
                daemon.restart()
                tally.restart()
                _forget_pages(here)
                assert tally.read(asked, reader.read(asked), _source(files))[0] == asked, "a full disk hinders no start"
                assert _status(daemon)["node"]["backend"] == "lazy"
            (disk / "others").unlink()
            _cli(daemon, "pull", model.reference)
            assert _status(daemon)["volumes"][0]["state"] == "verified"
            _fill(disk / "others")
            _cli(daemon, "umount", here)
            _cli(daemon, "rm", model.reference)
            assert _status(daemon)["node"]["store_used"] == 0, "a full disk keeps nobody from making room"


def _read_all_after(tally: Tally, reader: Reader, right: dict[Piece, str]) -> None:
    """Once the cool-down is over."""
    probe = next(iter(right))
    assert wait_until(lambda: not reader.read([Piece(2, 20 * _MIB, 4096)])[0].errno, 30)
    assert probe in right
    _read_all(tally, reader, right, 1, is_mapped=False)


def _fill(path: Path) -> None:
    """With all there is, root's own share too."""
    with path.open("wb") as file:
        for size in (_MIB, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
        os.fsync(file.fileno())
