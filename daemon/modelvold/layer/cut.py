"""Cutting a content into segments.

The rules, each of which the image writer or the kernel relies on:

- Segments are contiguous and cover [0, length) exactly; all of them begin at a multiple of 512 bytes.
- No segment ends strictly inside a chunk: EROFS gives each chunk one device. Chunks are counted from each file's
  start, and the last one ends where the file does, so a segment may end at the first block boundary at or after that.
- A segment is at most `longest_segment(length)` bytes; small files share one.
- A file of 64 MiB or more begins a segment, of 2 MiB: it holds the header, which every reader of a model wants first.

The result is stored when a content is first seen and never computed again for it, so these figures may change between
versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelvold.errors import Malformed
from modelvold.layer.extent import BLOCK, CHUNK, ContentOffset, Extent, padded
from modelvold.layer.toc import Entry, Kind, Toc

#: What one ranged request brings in good time; the waste of an access to one byte.
_SEGMENT = 16 << 20
#: A mount holds at most 65,535 devices, and each costs an open file in the kernel: fewer where there is much.
_LARGE_SEGMENT = 32 << 20
_LARGE_CONTENT = 1 << 30
_LARGE_FILE = 64 << 20
_HEADER = 2 << 20


def longest_segment(length: int) -> int:
    """The bound S, in bytes, for a content of `length` bytes."""
    return _LARGE_SEGMENT if length >= _LARGE_CONTENT else _SEGMENT


def cut(toc: Toc) -> tuple[Extent, ...]:
    """The segments of the content that `toc` describes, in order; none where it is empty.

    Raises Malformed where a file's bytes begin off a block, reach beyond the content, or overlap another's.
    """
    files = _files_by_offset(toc)
    bounds = [ContentOffset(0), *map(ContentOffset, _bounds(files, toc.length))]
    return tuple(map(Extent, bounds, bounds[1:]))


def _files_by_offset(toc: Toc) -> Sequence[Entry]:
    files = sorted(
        (entry for entry in toc.entries if entry.kind is Kind.FILE and entry.size), key=lambda file: file.offset
    )
    end = 0
    for file in files:
        if file.size < 0 or file.offset % BLOCK or not end <= file.offset <= file.offset + file.size <= toc.length:
            raise Malformed(
                f"{file.path[:200]!r}: its bytes [{file.offset}, {file.offset + file.size}) begin off a {BLOCK}-byte "
                f"block, overlap another file's or reach beyond the content of {toc.length} bytes",
                "ask the producer to repack the model",
            )
        end = padded(file.offset + file.size)
    return files


def _bounds(files: Sequence[Entry], length: int) -> Iterator[int]:
    """Where segments end. One pass over the files, beside one over the segments that are not inside one file: `near` never goes back."""
    longest = longest_segment(length)
    forced = _forced(files)
    stop = next(forced, length)
    near, start = 0, 0
    while start < length:
        while stop <= start < length:
            stop = next(forced, length)
        end = min(start + longest, length)
        ends: Sequence[int] = [min(stop, end)]
        if end < min(stop, length):
            while near < len(files) and _end(files[near]) <= end:
                near += 1
            if near < len(files):
                ends = _ends_in(files[near], end, min(stop, length), longest)
        yield from ends
        start = ends[-1]


def _forced(files: Sequence[Entry]) -> Iterator[int]:
    for file in files:
        if file.size >= _LARGE_FILE:
            yield file.offset
            yield file.offset + _HEADER


def _end(file: Entry) -> int:
    return padded(file.offset + file.size)


def _ends_in(file: Entry, bound: int, stop: int, step: int) -> Sequence[int]:
    """`bound`, or the start of the chunk of `file` that it lies inside, and from there on what lies whole steps apart in the file and
    before `stop`. `file` and `stop` end after `bound`."""
    if bound < file.offset:
        return [bound]
    return range(bound - (bound - file.offset) % CHUNK, min(stop, _end(file)), step)
