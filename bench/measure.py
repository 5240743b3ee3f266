"""What benches measure with: times, a process's CPU and memory, and the same start for everybody."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

_T = TypeVar("_T")
_PIECE = 1 << 20


def timed(do: Callable[[], object]) -> float:
    """Seconds of wall time."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads so far, in ticks of 10 ms."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def peak_memory(pid: int) -> int:
    """The most that was resident of a process so far, in bytes (proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def warm(paths: Iterable[Path]) -> None:
    """Reads the files, so that they are in the page cache."""
    buffer = bytearray(_PIECE)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folder: Path) -> None:
    """Takes the files below `folder` out of the page cache; what is not synced stays there, so it is synced first."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def bytes_in(folder: Path) -> int:
    """The sizes of the files below `folder`, summed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def turns(sides: Sequence[_T], rounds: int) -> Iterator[_T]:
    """Everybody once a round; who begins changes from round to round."""
    for number in range(rounds):
        first = number % len(sides)
        yield from [*sides[first:], *sides[:first]]
