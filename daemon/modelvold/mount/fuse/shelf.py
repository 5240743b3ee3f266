"""What the mount shows: volumes, each under its id, and what of them is open.

A volume has a number for as long as it is shown, and no later one gets it: the kernel may know its inodes longer than it is here. One
that is removed is gone from that moment; its image and folders are closed when the last request that uses them is answered. One that is
added again, as it was, keeps its number and what is open of it, and has its folders anew: they may be others now.

The lock guards all tables; nothing is opened, read or closed under it.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path

from modelvold.errors import Malformed
from modelvold.mount.fuse.files import Files
from modelvold.store.segment import file_name
from modelvold.volume.image import ImageReader

#: Of a node number's lower half, which is the inode's in the image.
INODE_BITS = 32
_INODE = (1 << INODE_BITS) - 1

#: Name, node and DT_* of each entry of a folder, in the order in which they are listed.
Names = Sequence[tuple[bytes, int, int]]


def node_of(number: int, nid: int) -> int:
    return number << INODE_BITS | nid


def number_of(node: int) -> int:
    """The volume's; 0 of the mount's root."""
    return node >> INODE_BITS


def nid_of(node: int) -> int:
    return node & _INODE


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of `size` bytes, or a folder with its `names`, while somebody has it open."""

    node: int
    size: int
    names: Names = ()


class Volume:
    """Its tree, and where the files of its segments are: folders are held open, so that they are found wherever they have moved.

    `users` and `is_left` are its shelf's.
    """

    def __init__(self, number: int, name: str, image: Path, folders: Sequence[tuple[Path, int]]) -> None:
        """Raises OSError, Malformed."""
        self.number = number
        self.name = name
        self.users = 0
        self.is_left = False
        self._ends = list(accumulate(devices for _, devices in folders))
        self._folders: list[int] = []
        with ExitStack() as made:
            self._map = made.enter_context(_mapped(image))
            self.image = ImageReader(self._map)
            if self.image.devices != (self._ends[-1] if self._ends else 0):
                raise Malformed(
                    f"volume {name}: its image has {self.image.devices} segments, not those it is shown with"
                )
            for folder, _ in folders:
                self._folders.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                made.callback(os.close, self._folders[-1])
            self._life = made.pop_all()

    def __repr__(self) -> str:
        return f"<volume {self.name} number={self.number} users={self.users}>"

    def open_segment(self, device: int) -> int:
        """A descriptor of the segment's file, for reading. Raises OSError."""
        folder = bisect_right(self._ends, device)
        first = self._ends[folder - 1] if folder else 0
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(file_name(device - first), flags, dir_fd=self._folders[folder])

    def close(self) -> None:
        self._life.close()


class Shelf:
    def __init__(self, files: Files) -> None:
        self._files = files
        self._numbers = count(1)
        self._handles = count(1)
        self._lock = threading.Lock()  # guards the tables below, and `users` and `is_left` of every volume
        self._by_name: dict[str, Volume] = {}
        self._by_number: dict[int, Volume] = {}
        self._opened: dict[int, Opened] = {}  # by handle
        self._open: Counter[int] = Counter()  # files and folders of each volume, by its number

    def __repr__(self) -> str:
        return f"<shelf volumes={len(self._by_name)} open={len(self._opened)}>"

    # -- what is shown

    def add(self, name: str, image: Path, folders: Sequence[tuple[Path, int]]) -> None:
        """Shows the volume `name`: the tree in `image`, its segments in these folders, each with so many. One caller at a time.

        Raises OSError, EBUSY where another volume of that name is shown and open; Malformed.
        """
        volume = Volume(0, name, image, folders)
        try:
            known = self._by_name.get(name)
            if known is not None and known.image.uuid != volume.image.uuid:
                self.remove(name)
                known = None
            volume.number = known.number if known is not None else next(self._numbers)
        except OSError:
            volume.close()
            raise
        with self._lock:
            self._by_name[name] = self._by_number[volume.number] = volume
            left = self._leave(known)
        self._end(left)

    def remove(self, name: str) -> None:
        """No lookup finds it from now on. Nothing happens where there is no such volume. Raises OSError, EBUSY, while files or folders of
        it are open; the kernel tells of the last one's end a moment after its close(2)."""
        with self._lock:
            known = self._by_name.get(name)
            if known is None:
                return
            if self._open[known.number]:
                raise OSError(errno.EBUSY, f"{self._open[known.number]} files of it are open", name)
            del self._by_name[name], self._by_number[known.number], self._open[known.number]
            left = self._leave(known)
        self._end(left)

    def volumes(self) -> dict[str, int]:
        """Their numbers by their names."""
        with self._lock:
            return {name: volume.number for name, volume in self._by_name.items()}

    def number(self, name: str) -> int | None:
        volume = self._by_name.get(name)
        return volume.number if volume is not None else None

    def close(self) -> None:
        """After the last request: whatever is open."""
        with self._lock:
            left = list(self._by_name.values())
            self._by_name, self._by_number, self._opened, self._open = {}, {}, {}, Counter()
        for volume in left:
            self._end(volume)

    # -- who uses it

    @contextmanager
    def held(self, number: int) -> Iterator[Volume]:
        """The volume of that number, which is not closed meanwhile. Raises OSError, ESTALE, where it is not shown."""
        volume = self.hold(number)
        try:
            yield volume
        finally:
            self.let_go(volume)

    def hold(self, number: int) -> Volume:
        """`held`, for who cannot wait for a generator."""
        with self._lock:
            volume = self._by_number.get(number)
            if volume is None:
                raise OSError(errno.ESTALE, "the volume is not shown any more")
            volume.users += 1
            return volume

    def let_go(self, volume: Volume) -> None:
        with self._lock:
            volume.users -= 1
            is_last = volume.is_left and not volume.users
        if is_last:
            self._end(volume)

    def open(self, opened: Opened) -> int:
        """A handle. Raises OSError, ESTALE, where its volume is not shown."""
        number = number_of(opened.node)
        with self._lock:
            if number and number not in self._by_number:
                raise OSError(errno.ESTALE, "the volume is not shown any more")
            handle = next(self._handles)
            self._opened[handle] = opened
            self._open[number] += 1
            return handle

    def opened(self, handle: int) -> Opened:
        """Raises OSError, EBADF."""
        opened = self._opened.get(handle)
        if opened is None:
            raise OSError(errno.EBADF, "no such handle")
        return opened

    def shut(self, handle: int) -> None:
        with self._lock:
            opened = self._opened.pop(handle, None)
            if opened is not None:
                self._open[number_of(opened.node)] -= 1

    def _leave(self, volume: Volume | None) -> Volume | None:
        """Under the lock. The volume, if it can be ended now."""
        if volume is None:
            return None
        volume.is_left = True
        return None if volume.users else volume

    def _end(self, volume: Volume | None) -> None:
        if volume is not None:
            self._files.drop(volume)
            volume.close()


@contextmanager
def _mapped(image: Path) -> Iterator[mmap.mmap]:
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not os.fstat(descriptor).st_size:
            raise Malformed("the volume's image is empty", "remove the volume and pull the model again")
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    try:
        yield mapped
    finally:
        mapped.close()
