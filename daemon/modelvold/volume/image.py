"""Reads the images that `volume.erofs` writes: a volume's tree, and in which segments the bytes of its files lie. Pure.

For whoever shows a volume without the kernel's EROFS. The layout is drawn there, and nothing else that EROFS allows is read.

The image is ours, but disks rot. So what is read is checked where it is read, and any bytes at all give an answer or Malformed, in time
and memory that the image's length bounds. All is looked up in the buffer each time: kept are only the devices' lengths, four bytes each.
Any number of threads may ask at once; the buffer must stay as long as it is while one does.
"""

from __future__ import annotations

import mmap
import stat
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from modelvold.errors import Malformed
from modelvold.layer.extent import BLOCK, CHUNK
from modelvold.pack.classify import natural_order
from modelvold.volume.erofs import HEAD, LARGEST_IMAGE
from modelvold.volume.tree import LONGEST_NAME, LONGEST_PATH

_Buffer = memoryview | mmap.mmap

# fs/erofs/erofs_fs.h, little-endian; what is not asked for is left out.
#: magic, block bits, root, blocks, meta's block, uuid, incompat, devices, first slot
_SUPERBLOCK = struct.Struct("<I8xBxH20x2I4x16s16xI2x2H")
#: A device's blocks, and where they would be in the image.
_SLOT = struct.Struct("<64x2I56x")
#: format, xattrs, mode, size, place
_HEAD_OF_INODE = struct.Struct("<3H2xQI")
#: uid, gid, seconds, nanoseconds, nlink; behind the head and the inode's number
_REST_OF_INODE = struct.Struct("<2IQ2I")
_REST_AT = 24
#: nid, where the name begins, file type
_DIRENT = struct.Struct("<QHBx")
_NAME_AT = struct.Struct("<8xH2x")
#: A chunk's entry: the block in the device, the device, 16 bits of nothing.
_ENTRY = struct.Struct("<Q")

_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_AT = 1024
_BLOCK_BITS = 9
_INCOMPAT = 0x4 | 0x8  # chunked files, device table
_INODE = 64
_NID = 32
_EXTENDED, _PLAIN, _CHUNKED = 1, 0 << 1, 4 << 1
_CHUNK_FORMAT = 11 | 0x20  # log2(chunk / block), entries of 8 bytes
#: From one chunk's entry to the next in a segment.
_STEP = CHUNK // BLOCK << 32
_NO_NEIGHBOUR = -1
_MOST_BITS = stat.S_IFREG | stat.S_IFDIR | stat.S_IFLNK | 0o777
_LATEST = 1 << 62
#: By EROFS's file type, `DT_*` of readdir(3).
_DT = {1: 8, 2: 4, 7: 10}
_ITSELF = frozenset({b".", b".."})


@dataclass(frozen=True, slots=True)
class Inode:
    """`mode` with its type. `size` of a folder is that of its entries in the image, of a symbolic link its target's. `mtime` in nanoseconds
    since 1970."""

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    nlink: int


@dataclass(frozen=True, slots=True)
class Extent3:
    """`length` bytes from `offset` of the segment that is device number `device`, from 0: in the order of layers, then segments."""

    device: int
    offset: int
    length: int


class ImageReader:
    """`root` is the number of the root's inode, `devices` how many segments there are, `capacity` the bytes of all of them.

    Numbers of inodes (`nid`) may come from anywhere; a wrong one gives Malformed, or another inode's answer. None is above 2^32.
    """

    def __init__(self, buffer: _Buffer) -> None:
        self._buffer = buffer
        self._length = len(buffer)
        if not HEAD <= self._length <= LARGEST_IMAGE:
            raise _rotten(f"has {self._length} bytes")
        magic, bits, root, blocks, meta, uuid, incompat, devices, slot = _SUPERBLOCK.unpack_from(buffer, _SUPERBLOCK_AT)
        if (magic, bits, incompat) != (_MAGIC, _BLOCK_BITS, _INCOMPAT):
            raise _rotten("is none of ours")
        table = slot * _SLOT.size
        if blocks * BLOCK != self._length or table != HEAD or table + devices * _SLOT.size > meta * BLOCK:
            raise _rotten("is cut short, or its parts lie over each other")
        self._meta = meta * BLOCK
        slots = bytes(buffer[table : table + devices * _SLOT.size])
        self._blocks = array("I", (blocks for blocks, _ in _SLOT.iter_unpack(slots)))
        self.uuid: bytes = uuid
        self.root: int = root
        self.devices: int = devices
        self.capacity = sum(self._blocks) * BLOCK
        self._folder(root)

    def inode(self, nid: int) -> Inode:
        """Raises Malformed."""
        at, mode, size, _ = self._head(nid)
        uid, gid, seconds, nanoseconds, nlink = _REST_OF_INODE.unpack_from(self._buffer, at + _REST_AT)
        if seconds > _LATEST or nanoseconds >= 10**9 or not nlink:
            raise _rotten(f"has an inode {nid} with an impossible time or no name")
        return Inode(nid, mode, uid, gid, size, seconds * 10**9 + nanoseconds, nlink)

    def lookup(self, nid: int, name: bytes) -> int | None:
        """The inode that `name` is in the folder `nid`; `.` and `..` are names. Raises Malformed, also where `nid` is no folder."""
        start, size = self._folder(nid)

        def first_name(number: int) -> bytes:
            return _name(*self._block(start, size, number), 0)

        number = bisect_right(range(-(-size // BLOCK)), name, key=first_name) - 1
        if number < 0:
            return None
        block, count = self._block(start, size, number)
        slot = bisect_left(range(count), name, key=lambda slot: _name(block, count, slot))
        if slot == count or _name(block, count, slot) != name:
            return None
        return self._checked(_DIRENT.unpack_from(block, slot * _DIRENT.size)[0])

    def names(self, nid: int) -> list[tuple[bytes, int, int]]:
        """Name, inode and `DT_*` of all that is in the folder `nid`, but `.` and `..`, in natural order. Raises Malformed."""
        start, size = self._folder(nid)
        found: list[tuple[bytes, int, int]] = []
        before = b""
        for number in range(-(-size // BLOCK)):
            block, count = self._block(start, size, number)
            for slot, (below, _, kind) in enumerate(_DIRENT.iter_unpack(block[: count * _DIRENT.size])):
                name = _name(block, count, slot)
                if name <= before or kind not in _DT or len(name) > LONGEST_NAME or b"/" in name or b"\0" in name:
                    raise _rotten(f"has a name in folder {nid} that cannot be")
                before = name
                if name not in _ITSELF:
                    found.append((name, self._checked(below), _DT[kind]))
        found.sort(key=lambda entry: natural_order(entry[0].decode("utf-8", "surrogateescape")))
        return found

    def target(self, nid: int) -> bytes:
        """Of the symbolic link `nid`. Raises Malformed."""
        _, mode, size, place = self._head(nid)
        if not stat.S_ISLNK(mode):
            raise _rotten(f"has an inode {nid} that is no symbolic link")
        target = bytes(self._buffer[place * BLOCK : place * BLOCK + size])
        if b"\0" in target:
            raise _rotten(f"has a symbolic link {nid} that leads nowhere")
        return target

    def extents(self, nid: int, offset: int, length: int) -> Iterator[Extent3]:
        """Where the bytes [offset, offset + length) of the file `nid` lie, as far as it has them, in their order; chunks that follow each
        other in a segment as one. Raises Malformed, also after some."""
        at, mode, size, _ = self._head(nid)
        if not stat.S_ISREG(mode):
            raise _rotten(f"has an inode {nid} that is no file")
        end = min(offset + length, size)
        if not 0 <= offset < end:
            return
        table, start, first, neighbour = at + _INODE, offset, 0, _NO_NEIGHBOUR
        for chunk in range(offset // CHUNK, -(-end // CHUNK)):
            (entry,) = _ENTRY.unpack_from(self._buffer, table + chunk * _ENTRY.size)
            if entry != neighbour:
                if neighbour != _NO_NEIGHBOUR:
                    yield self._extent(first, start, chunk * CHUNK)
                    start = chunk * CHUNK
                first = entry
            neighbour = entry + _STEP
        yield self._extent(first, start, end)

    def walk(self, path: bytes) -> int | None:
        """The inode at `path` below the root, which has the empty one. Names are taken as they are: symbolic links lead nowhere. Raises
        Malformed."""
        nid = self.root
        for name in path.split(b"/") if path else ():
            _, mode, *_ = self._head(nid)
            below = self.lookup(nid, name) if stat.S_ISDIR(mode) else None
            if below is None:
                return None
            nid = below
        return nid

    def _checked(self, nid: int) -> int:
        """`nid` if an inode could be there; none lies across a block's end."""
        if nid <= 0 or nid * _NID % _INODE or self._meta + nid * _NID + _INODE > self._length:
            raise _rotten(f"has no inode {nid}")
        return nid

    def _head(self, nid: int) -> tuple[int, int, int, int]:
        """Offset, mode, size and place of an inode, such that all it says lies in the image."""
        at = self._meta + self._checked(nid) * _NID
        form, xattrs, mode, size, place = _HEAD_OF_INODE.unpack_from(self._buffer, at)
        if stat.S_ISREG(mode):
            is_sound = (form, place) == ((_EXTENDED | _CHUNKED, _CHUNK_FORMAT) if size else (_EXTENDED | _PLAIN, 0))
            end = at + _INODE + -(-size // CHUNK) * _ENTRY.size
        else:
            is_sound = form == _EXTENDED | _PLAIN and size > 0
            is_sound &= stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and size <= LONGEST_PATH)
            end = place * BLOCK + size
        if not is_sound or xattrs or mode & ~_MOST_BITS or end > self._length:
            raise _rotten(f"has an inode {nid} that cannot be")
        return at, mode, size, place

    def _folder(self, nid: int) -> tuple[int, int]:
        """Where its entries begin, and how many bytes they are."""
        _, mode, size, place = self._head(nid)
        if not stat.S_ISDIR(mode):
            raise _rotten(f"has an inode {nid} that is no folder")
        return place * BLOCK, size

    def _block(self, start: int, size: int, number: int) -> tuple[bytes, int]:
        """One block of a folder's entries, and how many of them are in it: the first one's name follows the last of them."""
        at = start + number * BLOCK
        block = bytes(self._buffer[at : min(at + BLOCK, start + size)])
        (names,) = _NAME_AT.unpack_from(block) if len(block) >= _DIRENT.size else (0,)
        if names % _DIRENT.size or not _DIRENT.size <= names < len(block):
            raise _rotten(f"has no folder at byte {at}")
        return block, names // _DIRENT.size

    def _extent(self, entry: int, start: int, end: int) -> Extent3:
        """The bytes [start, end) of a file whose chunk with `start` is at `entry`, and whose later ones follow in the segment."""
        device, offset = (entry >> 16 & 0xFFFF) - 1, (entry >> 32) * BLOCK + start % CHUNK
        if entry & 0xFFFF or not 0 <= device < self.devices or offset + end - start > self._blocks[device] * BLOCK:
            raise _rotten("has a chunk that lies in no segment")
        return Extent3(device, offset, end - start)


def _name(block: bytes, count: int, slot: int) -> bytes:
    """The name of an entry of a folder's block of `count`. The last one's ends with the block, or where zeros fill it."""
    (start,) = _NAME_AT.unpack_from(block, slot * _DIRENT.size)
    is_last = slot + 1 == count
    (end,) = (len(block),) if is_last else _NAME_AT.unpack_from(block, (slot + 1) * _DIRENT.size)
    if not count * _DIRENT.size <= start < end <= len(block):
        raise _rotten("has a folder whose names overlap")
    name = block[start:end]
    return name.rstrip(b"\0") if is_last else name


def _rotten(why: str) -> Malformed:
    return Malformed(f"the volume's image {why}", "remove the volume and pull the model again")
