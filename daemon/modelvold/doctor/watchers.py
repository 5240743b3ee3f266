"""Other programs that the kernel asks before files are read: virus and endpoint scanners. Pure.

One that watches a mount or a file system reads a whole file before it allows the first byte, which fetches a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvold.doctor.line import Group, Line
from modelvold.mount.findings import LAZY

GROUP = Group("programs that watch files")
#: FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_PRE_ACCESS (linux/fanotify.h).
_PERMISSION = 0x10000 | 0x20000 | 0x100000
_MARK = re.compile(r"(?m)^fanotify .*?\bmask:([0-9a-fA-F]+)")


@dataclass(frozen=True, slots=True)
class Watcher:
    """A process, and its fanotify groups' texts in /proc/PID/fdinfo (proc_pid_fdinfo(5))."""

    pid: int
    name: str
    groups: tuple[str, ...]

    @property
    def is_asked(self) -> bool:
        return any(int(mask, 16) & _PERMISSION for text in self.groups for mask in _MARK.findall(text))


def not_needed() -> Line:
    return GROUP.ok("fanotify", f"not looked at: only the backend {LAZY} asks by it")


def check(watchers: Sequence[Watcher], daemon: int, run: Path, *, is_all: bool) -> Iterator[Line]:
    """`daemon` is the process of ours that holds the store, 0 if none; `is_all` is whether every process could be looked at."""
    others = [watcher for watcher in watchers if watcher.is_asked and not _is_ours(watcher, daemon)]
    for watcher in others:
        yield GROUP.warn(
            "fanotify",
            f"{watcher.name} (pid {watcher.pid}) is asked before files are opened or read, and may read them whole",
            f"leave {run} and the folders of containers out in that program's settings",
        )
    if not is_all:
        yield GROUP.warn(
            "fanotify",
            "only programs of this user could be looked at",
            "run `modelvold doctor` as root, with CAP_SYS_PTRACE",
        )
    elif not others:
        yield GROUP.ok("fanotify", "none that is asked before files are read")


def _is_ours(watcher: Watcher, daemon: int) -> bool:
    return watcher.pid == daemon or watcher.name == "modelvold"
