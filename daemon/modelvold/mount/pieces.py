"""Pieces of a volume's files, and what of them is in the page cache.

Nothing here reads or maps a file, or waits for a page: opening one reads the volume's image, which is all here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from modelvold.linux import pages

#: Beyond this, where in a range pages are cached is not looked at more closely.
_FINEST = 64 << 10
#: No folio of the page cache is larger, and each begins at a multiple of its size.
_LARGEST_FOLIO = 32 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """[start, end) of the file at `path` below a volume's root, in bytes; `path` as `os.fsdecode` gives it."""

    path: str
    start: int
    end: int


def let_go(root: int, pieces: Iterable[Piece]) -> list[Piece]:
    """Drops their pages, as far as nobody has them. What is still cached of them. Pieces of one file come one behind another;
    `root` is a descriptor of the volume's root. Raises OSError."""
    left: list[Piece] = []
    for path, of_file in groupby(pieces, key=lambda piece: piece.path):
        with opened(root, path) as file:
            for piece in of_file:
                pages.let_go(file, *_rounded(piece))
                left += [Piece(path, start, end) for start, end in _cached(file, piece.start, piece.end)]
    return left


@contextmanager
def opened(root: int, path: str) -> Iterator[int]:
    """A descriptor of a volume's file."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        yield file
    finally:
        os.close(file)


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Sorted; what touches or overlaps becomes one."""
    found: list[Piece] = []
    for piece in sorted(pieces, key=attrgetter("path", "start")):
        if found and found[-1].path == piece.path and piece.start <= found[-1].end:
            found[-1] = Piece(piece.path, found[-1].start, max(found[-1].end, piece.end))
        else:
            found.append(piece)
    return found


def _rounded(piece: Piece) -> tuple[int, int]:
    return piece.start // _LARGEST_FOLIO * _LARGEST_FOLIO, -(-piece.end // _LARGEST_FOLIO) * _LARGEST_FOLIO


def _cached(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of [start, end) with cached pages, by halves; neighbours are not joined."""
    count = pages.cached(file, start, end)
    is_full = count >= -(-end // pages.PAGE) - start // pages.PAGE
    if count and (is_full or end - start <= _FINEST):
        yield start, end
    elif count:
        middle = (start + end) // 2 // pages.PAGE * pages.PAGE
        yield from _cached(file, start, middle)
        yield from _cached(file, middle, end)
