"""Who has files open below a folder: the links of /proc/PID/{fd,cwd,root}, as in proc_pid_fd(5).

Only links are read, never what they lead to, nor a process's memory map or command line: those can hang while it waits in a page
fault. So one that has closed a file and still maps it is not found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def holders(folder: Path) -> list[str]:
    """`name (pid)` of each, by pid; those that end meanwhile or may not be looked at are left out."""
    pids = sorted(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [f"{_name(pid)} ({pid})" for pid in pids if any(_is_below(link, folder) for link in _links(pid))]


def _links(pid: int) -> Iterator[str]:
    for name in ("cwd", "root"):
        with suppress(OSError):
            yield os.readlink(f"/proc/{pid}/{name}")  # noqa: PTH115
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115


def _is_below(link: str, folder: Path) -> bool:
    return link == str(folder) or link.startswith(f"{folder}/")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
