"""The toc: a layer's entries and where their bytes lie in its content."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from modelvold.layer.extent import ContentOffset


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. `path` is relative, with `/` between non-empty components, none of them `.` or `..`.

    `offset` is where a file's bytes begin in the content (a multiple of 512), `size` how many there are; `mtime` is in
    nanoseconds since 1970; `link` is a symlink's target.
    """

    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: ContentOffset = ContentOffset(0)
    link: str = ""


@dataclass(frozen=True, slots=True)
class Toc:
    """`length` is the content's, in bytes; no entry reaches beyond it."""

    entries: tuple[Entry, ...]
    length: int
