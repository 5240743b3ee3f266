"""What is mounted, and how what we caused is taken away (proc(5), mountinfo; umount2(2))."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mountinfo."""

    id: int
    point: str
    type: str
    source: str


def mounted(folder: Path | None = None) -> list[Mounted]:
    """All mounts of this mount namespace, or those at or below `folder`, in the order they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        found.append(Mounted(int(fields[0]), _plain(fields[4]), rest[0], _plain(rest[1])))
    if folder is None:
        return found
    root = os.path.realpath(folder)
    return [mount for mount in found if mount.point == root or mount.point.startswith(f"{root}/")]


def unmount_below(folder: Path) -> list[Mounted]:
    """Detaches every mount at or below `folder`, youngest first; what there was."""
    found = mounted(folder)
    for mount in reversed(found):
        _LIBC.umount2(os.fsencode(mount.point), _MNT_DETACH)
    return found


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
