"""Offsets, each in its own space, and the cell sizes everything agrees on.

A `BlobOffset` counts bytes as the registry has them, a `ContentOffset` bytes after decompression, a `FileOffset` bytes of one file
of the tree. For raw and plain tar layers the first two have equal values; only this room may rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

BlobOffset = NewType("BlobOffset", int)
ContentOffset = NewType("ContentOffset", int)
FileOffset = NewType("FileOffset", int)

#: EROFS's block and tar's record: where a file's bytes may begin.
BLOCK = 512
#: EROFS's cell of a file, counted from the file's start. At least the kernel's read-ahead window (128 KiB), or present bytes
#: become unreadable while their neighbours are missing.
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The half-open range [start, end) of a content, in bytes."""

    start: ContentOffset
    end: ContentOffset

    @property
    def length(self) -> int:
        return self.end - self.start


def padded(length: int) -> int:
    """`length` rounded up to a whole block: how long a complete segment file is."""
    return -(-length // BLOCK) * BLOCK
