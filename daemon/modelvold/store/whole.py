"""A verified content as whole files, for the backend that shows a plain directory: one copy, never two.

    <content>/whole/<n>     the bytes of files[n], of those extents of the content that a toc calls files

Segment by segment, in order: what it holds of files is copied into them, they are synced, that is recorded, and only then
the segment is emptied; so at any moment one segment at most lies on disk twice, and a crash anywhere leaves each byte in one
recorded place. Where the file system can share blocks, copying costs nothing. What lies between files (a tar's headers) is
dropped: a content that is whole can be shown as files only, and is fetched again for anything else.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.errors import NotYet
from modelvold.layer.extent import Extent
from modelvold.linux.files import sync_filesystem
from modelvold.store.content import Content
from modelvold.store.segment import Segment

_PIECE = 1 << 20
#: copy_file_range(2) where the kernel or the file system cannot.
_CANNOT = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV})


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes at `source` in the segment that belong at `target` in the whole file `number`."""

    number: int
    source: int
    target: int
    length: int


class SyncFailed(OSError):
    """What was copied may not be on disk: the kernel may have dropped pages it called written."""


def pieces(segment: Extent, files: Sequence[Extent]) -> Iterator[Piece]:
    """What a segment holds of `files`, which are in order and do not overlap."""
    number = max(0, bisect_right(files, segment.start, key=lambda file: file.start) - 1)
    while number < len(files) and files[number].start < segment.end:
        start, end = max(segment.start, files[number].start), min(segment.end, files[number].end)
        if start < end:
            yield Piece(number, start - segment.start, start - files[number].start, end - start)
        number += 1


def move(
    content: Content, files: Sequence[Extent], recorded: Callable[[Segment], None], cancelled: Callable[[], bool]
) -> None:
    """Makes the content whole; goes on where a former call ended. `recorded(segment)` records that it has moved, synced.

    Raises SyncFailed where the disk fails, any other OSError where it is full, NotYet once `cancelled()`. What has not
    moved lies where it lay.
    """
    folder = content.whole(0).parent
    folder.mkdir(exist_ok=True, mode=0o700)
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as at:
        for segment in content.segments:
            if cancelled():
                raise NotYet(f"layer {content.digest}: given up", "ask for it again")
            if not segment.moved:
                _copy_out(content, segment, list(pieces(segment.extent, files)))
                _sync(at)
                recorded(segment)
                segment.empty()


def is_there(content: Content, files: Sequence[Extent]) -> bool:
    """Whether every whole file is as long as it should be."""
    return all(
        content.whole(number).is_file() and content.whole(number).stat().st_size == file.length
        for number, file in enumerate(files)
    )


def _copy_out(content: Content, segment: Segment, parts: Sequence[Piece]) -> None:
    with _opened(segment.path, os.O_RDONLY) as source:
        for piece in parts:
            with _opened(content.whole(piece.number), os.O_WRONLY | os.O_CREAT) as target:
                copy(source, target, piece.source, piece.target, piece.length)


def copy(source: int, target: int, start: int, at: int, length: int) -> None:
    """`length` bytes from `start` in the file `source` to `at` in the file `target`; blocks are shared where they can be."""
    done = 0
    while done < length:
        try:
            got = os.copy_file_range(source, target, length - done, start + done, at + done)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            got = os.pwrite(target, os.pread(source, min(_PIECE, length - done), start + done), at + done)
        if not got:
            raise OSError(errno.EIO, "the source is shorter than recorded")
        done += got


def _sync(folder: int) -> None:
    """Of the whole file system, for one segment may hold ten thousand files."""
    try:
        sync_filesystem(folder)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror) from error


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
