"""What does it cost that what a pull calls durable is durable?

    make bench        (or: python -m bench.durability [--rounds N])

1. A pull of 1 GiB (4 raw layers, docker-registry on loopback) by the daemon as it is, and by the same daemon with fdatasync and
   fsync doing nothing: the time until `modelvold pull` returns. It returns when all is verified, so hashing hides much of the
   syncing; that is the point.
2. How to sync: 48 segments of 16 MiB appended by four threads, in four ways: not at all; fdatasync by the thread that wrote; fdatasync
   by a pool of four (what the store does); one syncfs for every 16. The time until the last one is on disk.

Medians; the ways take turns in one run. The disk is whatever holds the folder for temporary files.
"""

from __future__ import annotations

import argparse
import os
import platform
import queue
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelvold.linux.files import sync_filesystem

from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Python
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry

MIB = 1 << 20
_SEGMENT, _SEGMENTS, _WRITERS, _BATCH = 16 * MIB, 48, 4, 16
_PIECE = 256 << 10
_UNSYNCED = "import os\nos.fdatasync = os.fsync = lambda descriptor: None\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    folder = lazy_folder()
    try:
        print(f"machine: {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}")
        print(f"medians of {rounds}")
        _pulls(folder, rounds)
        _ways(folder, rounds)
    finally:
        shutil.rmtree(folder)


def _pulls(folder: Path, rounds: int) -> None:
    unsynced = folder / "unsynced"
    unsynced.mkdir()
    (unsynced / "sitecustomize.py").write_text(_UNSYNCED)
    usual = Python()
    path = f"{unsynced}:{usual.environment['PYTHONPATH']}"
    pythons = {"as it is": usual, "nothing synced": Python(environment={**usual.environment, "PYTHONPATH": path})}
    times: dict[str, list[float]] = {name: [] for name in pythons}
    with Registry(folder / "registry") as registry:
        model = registry.push.model({f"{n}.bin": Generated(256 * MIB, n) for n in range(4)})
        for number in range(rounds):
            for name, python in pythons.items():
                times[name].append(_pull(folder / f"pull-{number}", python, model.reference))
    _print("pull of 1 GiB", times)


def _pull(folder: Path, python: Python, reference: str) -> float:
    os.sync()
    with Daemon(folder, {"log": {"level": "info"}}, python=python) as daemon:
        began = time.perf_counter()
        ran = daemon.cli("pull", reference)
        took = time.perf_counter() - began
        assert ran.returncode == 0, ran.stderr
    shutil.rmtree(folder)
    return took


def _ways(folder: Path, rounds: int) -> None:
    ways: dict[str, Callable[[Path], None]] = {
        "pool of four": _by_a_pool,
        "each by its writer": _by_the_writer,
        "syncfs per 16": _by_syncfs,
        "nothing synced": lambda path: _write_all(path, lambda _: None),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            target = folder / f"way-{number}"
            target.mkdir()
            os.sync()
            began = time.perf_counter()
            way(target)
            times[name].append(time.perf_counter() - began)
            shutil.rmtree(target)
    _print(f"{_SEGMENTS} segments of {_SEGMENT // MIB} MiB", times)


def _write_all(folder: Path, then: Callable[[int], None]) -> None:
    """`then` gets each segment's descriptor, its own to close if it keeps a copy."""
    block = memoryview(Generated(_PIECE, 1).at(0, _PIECE))

    def write(number: int) -> None:
        descriptor = os.open(folder / str(number), os.O_CREAT | os.O_WRONLY)
        try:
            for at in range(0, _SEGMENT, _PIECE):
                os.pwrite(descriptor, block, at)
            then(descriptor)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(write, range(_SEGMENTS)))


def _by_the_writer(folder: Path) -> None:
    _write_all(folder, os.fdatasync)


def _by_a_pool(folder: Path) -> None:
    def sync(descriptor: int) -> None:
        os.fdatasync(descriptor)
        os.close(descriptor)

    with ThreadPoolExecutor(_WRITERS) as pool:
        _write_all(folder, lambda descriptor: pool.submit(sync, os.dup(descriptor)) and None)


def _by_syncfs(folder: Path) -> None:
    written: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def sync() -> None:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(1, _SEGMENTS + 1):
                written.get()
                if number % _BATCH == 0:
                    sync_filesystem(root)
        finally:
            os.close(root)

    syncer = threading.Thread(target=sync)
    syncer.start()
    _write_all(folder, lambda _: written.put(True))
    syncer.join()


def _print(what: str, times: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(times.values())))
    print(f"{what + ', s':<28}{'':>10}{'ratio':>9}")
    for name, took in times.items():
        median = statistics.median(took)
        print(f"  {name:<26}{median:>10.3f}{median / first:>9.2f}")


if __name__ == "__main__":
    main()
