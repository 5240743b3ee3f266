"""Whether a piece of work left anything behind: mounts, processes, threads, descriptors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.lab.mounts import mounted
from tests.lab.program import wait_until

_PATIENCE = 10.0


@contextmanager
def settled(*folders: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Raises AssertionError, naming each, if `patience` seconds later something is there that was not there before.

    Mounts: those at or below `folders`, or all if none is given (then nobody else may be mounting). Processes: our
    descendants, and whoever has one of `folders` in its command line, its parent dead or not. Threads of ours. Open
    files and sockets of ours; pipes and event descriptors are not counted, since gRPC keeps its own for good.
    """
    before = _seen(folders)
    yield
    wait_until(lambda: not _seen(folders) - before, patience)
    left = _seen(folders) - before
    assert not left, "left behind: " + "; ".join(sorted(left))


def _seen(folders: tuple[Path, ...]) -> set[str]:
    mounts = [mount for folder in folders for mount in mounted(folder)] if folders else mounted()
    return (
        {f"mount {mount.id} {mount.point} ({mount.type})" for mount in mounts}
        | _processes(folders)
        | {f"thread {thread.name}" for thread in threading.enumerate() if thread.is_alive()}
        | _descriptors()
    )


def _processes(folders: tuple[Path, ...]) -> set[str]:
    us = os.getpid()
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    names = tuple(str(folder) for folder in folders)
    found = set()
    for running in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(running.info["cmdline"] or [])
        if running.info["pid"] != us and (running.info["pid"] in ours or any(name in command for name in names)):
            found.add(f"pid {running.info['pid']} {command[:100]}")
    return found


def _descriptors() -> set[str]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
            if not target.startswith(("anon_inode:", "pipe:", "/proc/")):
                found.add(f"descriptor {target}")
    return found
