"""The segments' files, a bounded number of them open: the one that was read longest ago is closed for the next.

The lock guards the table; files are opened and read without it, and a file is closed when nobody reads it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from typing import Protocol

#: A reader is in one or two segments at a time, and half of the descriptors that a process has by default (1024) is left.
MOST_OPEN = 512


class Opener(Protocol):
    """A volume, as far as it is known here: the same object is the same volume."""

    def open_segment(self, device: int) -> int:
        """A descriptor for reading. Raises OSError."""
        ...


class Segment:
    """A segment's file while somebody reads it. `inode` is its number on the store's file system."""

    __slots__ = ("descriptor", "inode", "is_left", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino
        self.users = 1
        self.is_left = False  # not in the table any more: closed by its last user


class Files:
    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards _table and all that is in it
        self._table: OrderedDict[tuple[Opener, int], Segment] = OrderedDict()  # read longest ago first

    def __repr__(self) -> str:
        return f"<files open={len(self._table)}/{self._most}>"

    def borrow(self, volume: Opener, device: int) -> Segment:
        """Stays open until it is given back. Raises OSError."""
        key = (volume, device)
        with self._lock:
            known = self._table.get(key)
            if known is not None:
                known.users += 1
                self._table.move_to_end(key)
                return known
        descriptor = volume.open_segment(device)
        try:
            segment = Segment(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        too_many: list[int] = []
        with self._lock:
            self._take_out(key, too_many)  # another thread opened it meanwhile: the later one stays
            self._table[key] = segment
            while len(self._table) > self._most:
                self._take_out(next(iter(self._table)), too_many)
        _close(too_many)
        return segment

    def give_back(self, segment: Segment) -> None:
        with self._lock:
            segment.users -= 1
            is_last = segment.is_left and not segment.users
        if is_last:
            os.close(segment.descriptor)

    def drop(self, volume: Opener) -> None:
        """Closes those of a volume that nobody uses any more."""
        left: list[int] = []
        with self._lock:
            for key in [key for key in self._table if key[0] is volume]:
                self._take_out(key, left)
        _close(left)

    def close(self) -> None:
        left: list[int] = []
        with self._lock:
            for key in list(self._table):
                self._take_out(key, left)
        _close(left)

    def _take_out(self, key: tuple[Opener, int], to_close: list[int]) -> None:
        """Under the lock."""
        segment = self._table.pop(key, None)
        if segment is not None:
            segment.is_left = True
            if not segment.users:
                to_close.append(segment.descriptor)


def fill(segment: Segment, offset: int, view: memoryview, flags: int = 0) -> int:
    """Fills `view` from `offset` of a borrowed segment; how many bytes came, fewer only where the file ends, or where the `flags` of
    preadv2(2) keep it from waiting: then BlockingIOError, if none came. Raises OSError."""
    try:
        came = os.preadv(segment.descriptor, (view,), offset, flags)
    except OSError as error:
        if flags and error.errno == errno.EOPNOTSUPP:  # this file system cannot tell
            raise BlockingIOError(errno.EAGAIN, error.strerror) from error
        raise
    while not flags and 0 < came < len(view):
        more = os.preadv(segment.descriptor, (view[came:],), offset + came)
        if not more:
            break
        came += more
    return came


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
