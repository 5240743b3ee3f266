"""What is seen of a tree, and what must be: by rules of their own, and no code of ours."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.property.layers import Folder, HardLink, Member, Sample, Symlink


@dataclass(frozen=True, slots=True)
class Seen:
    """What is at one path. `kind` is S_IFMT's; `size` is a file's and 0 of anything else, `same` the first of all paths
    that are the same file.
    """

    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    nlink: int
    size: int = 0
    target: str = ""
    same: str = ""


def shown(members: Sequence[Member]) -> dict[str, Seen]:
    """What must be seen at each path of a tree of these, the root's among them."""
    leaves = _files(members) | {
        member.path: Seen(stat.S_IFLNK, 0o777, member.uid, member.gid, member.mtime, 1, target=member.target)
        for member in members
        if isinstance(member, Symlink)
    }
    named = {member.path: member for member in members if isinstance(member, Folder)}
    return leaves | _folders(named, {path: seen.mtime for path, seen in leaves.items()})


def _files(members: Sequence[Member]) -> dict[str, Seen]:
    samples = [member for member in members if isinstance(member, Sample)]
    names = defaultdict(list, {sample.path: [sample.path] for sample in samples})
    for member in members:
        if isinstance(member, HardLink):
            names[member.target].append(member.path)
    return {
        path: Seen(
            stat.S_IFREG, sample.mode & 0o777, sample.uid, sample.gid, sample.mtime, len(names[sample.path]),
            size=sample.size, same=min(names[sample.path]),
        )
        for sample in samples
        for path in names[sample.path]
    }  # fmt: skip


def _folders(named: dict[str, Folder], times: dict[str, int]) -> dict[str, Seen]:
    """The folders that are `named` or above the paths in `times`: root's and as new as the newest below, if unnamed."""
    newest: defaultdict[str, int] = defaultdict(int)
    for path, time in [*times.items(), *((folder.path, folder.mtime) for folder in named.values())]:
        for folder in above(path):
            newest[folder] = max(newest[folder], time)
    paths = {"", *newest, *named}
    below = defaultdict(int, {"": 0})
    for path in paths - {""}:
        below[next(above(path))] += 1
    shown = {path: named.get(path) or Folder(path, mtime=newest[path]) for path in paths}
    return {
        path: Seen(stat.S_IFDIR, folder.mode & 0o777, folder.uid, folder.gid, folder.mtime, 2 + below[path])
        for path, folder in shown.items()
    }


def above(path: str) -> Iterator[str]:
    """The folders above `path`, the nearest first, the root last. None is above the root."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def look(folder: Path) -> dict[str, Seen]:
    """What is at every path below `folder`, itself included, by its path there. Of modes the lower twelve bits."""
    root = str(folder)
    found = {"": os.lstat(root)} | {
        f"{at}/{name}"[len(root) + 1 :]: os.lstat(f"{at}/{name}")
        for at, folders, files in os.walk(root)
        for name in folders + files
    }
    names: defaultdict[int, list[str]] = defaultdict(list)
    for path, status in found.items():
        names[status.st_ino].append(path)
    return {path: _seen(f"{root}/{path}", status, min(names[status.st_ino])) for path, status in found.items()}


def _seen(path: str, status: os.stat_result, first: str) -> Seen:
    kind = stat.S_IFMT(status.st_mode)
    is_file = kind == stat.S_IFREG
    return Seen(
        kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink,
        size=status.st_size if is_file else 0,
        target=os.readlink(path) if kind == stat.S_IFLNK else "",  # noqa: PTH115 - a `Path` would change it
        same=first if is_file else "",
    )  # fmt: skip
