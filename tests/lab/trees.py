"""All that a file system shows of a tree, to compare what should be the same wherever it lies."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

#: Stands for every time at or after the one from which on times are not compared.
LATER = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at one path. `mode` is all of st_mode; `size`, `content` (its SHA-256) and `same` (the first of all paths that are the
    same file) are a file's. `device` is that of a node; `mtime` in nanoseconds, or LATER."""

    mode: int
    uid: int
    gid: int
    mtime: int
    links: int = 1
    size: int = 0
    target: str = ""
    device: int = 0
    same: str = ""
    content: str = ""
    attributes: tuple[tuple[str, bytes], ...] = ()


def listed(root: Path, since: int | None = None) -> dict[str, Entry]:
    """Every path below `root`, and `root` as `.`, as the file system shows them. Times from `since` on (nanoseconds) are LATER."""
    found = {".": os.lstat(root)} | {
        os.path.relpath(os.path.join(above, name), root): os.lstat(os.path.join(above, name))  # noqa: PTH118
        for above, folders, files in os.walk(root)
        for name in folders + files
    }
    first: dict[tuple[int, int], str] = {}
    for path in sorted(found):
        first.setdefault((found[path].st_dev, found[path].st_ino), path)
    return {
        path: _entry(root / path, status, first[status.st_dev, status.st_ino], since) for path, status in found.items()
    }


def differences(ours: Mapping[str, Entry], theirs: Mapping[str, Entry], most: int = 20) -> list[str]:
    """The first `most` in which two trees differ, each in one line."""
    found = []
    for path in sorted({*ours, *theirs}):
        our, their = ours.get(path), theirs.get(path)
        if our is None or their is None:
            found.append(f"{path}: only {'theirs' if our is None else 'ours'}")
        elif our != their:
            names = (field.name for field in fields(Entry))
            pairs = ((name, getattr(our, name), getattr(their, name)) for name in names)
            found.append(f"{path}: " + ", ".join(f"{name} {a!r} not {b!r}" for name, a, b in pairs if a != b))
    return found[:most]


def _entry(path: Path, status: os.stat_result, same: str, since: int | None) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    is_file = kind == stat.S_IFREG
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=LATER if since is not None and status.st_mtime_ns >= since else status.st_mtime_ns,
        # Of a folder it says how the file system counts, of an overlay's always 1.
        links=1 if kind == stat.S_IFDIR else status.st_nlink,
        size=status.st_size if is_file else 0,
        target=os.readlink(path) if kind == stat.S_IFLNK else "",  # noqa: PTH115 - a `Path` would change it
        device=status.st_rdev,
        same=same,
        content=_digest(path) if is_file else "",
        attributes=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
