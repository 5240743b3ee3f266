"""The EROFS image of a volume: the tree alone; file bytes lie in devices, one segment each.

Layout (fs/erofs/erofs_fs.h), little-endian, in blocks of 512 bytes because there a tar puts a file's first byte:

    1024   superblock, 128 bytes
    1152   device table, 128 bytes a segment, in order of layers, then segments; devices are numbered from 1
    meta   64 bytes unused, since programs take the inode number 0 for a deleted name; then inodes of 64 bytes, the
           root's first (its number has 16 bits); a file's chunk table follows its inode: 8 bytes a chunk, the device
           and the block in it
    data   directories and targets of symbolic links, each from a block of its own

All names of one file are one inode: directories give the same inode number for them, and the inode counts them.

The kernel parses what is written here, so this is the guard: permission bits only, no devices, no extended attributes,
sizes refused before memory is taken for them. Equal trees and segments give equal bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, count

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import BLOCK, CHUNK, Extent, padded
from modelvold.volume.tree import File, Folder, Link, Symlink, Tree

#: `device_id` has 16 bits, and 0 is the image itself.
MOST_DEVICES = 0xFFFF
LARGEST_IMAGE = 1 << 30
#: 8 TiB of files.
LARGEST_CHUNK_TABLES = 64 << 20
#: How many of an image's first bytes `parse_uuid` needs.
HEAD = 1152

_Bytes = bytes
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_AT = 1024
_UUID_AT = _SUPERBLOCK_AT + 48
_SLOT = 128
_INODE = 64
_NID = 32
_BLKSZBITS = 9
_INCOMPAT = 0x4 | 0x8  # chunked files, device table
_CHUNK_FORMAT = 11 | 0x20  # log2(chunk / block), entries of 8 bytes
_EXTENDED, _PLAIN, _CHUNKED = 1, 0 << 1, 4 << 1
_S_IFREG, _S_IFDIR, _S_IFLNK = 0o100000, 0o040000, 0o120000
_FT_FILE, _FT_DIRECTORY, _FT_SYMLINK = 1, 2, 7
_LATEST = 1 << 62
#: Where a device's blocks are to be found in the image when it is mounted without its devices, as the kernel allows:
#: beyond any end, so that such a mount answers EIO. At 0 it would show the image's own bytes as the model's.
_NOWHERE = 1 << 31

# magic checksum compat bits slots root inos build_time nsec blocks meta_blkaddr xattr_blkaddr uuid label incompat u1
# devices devt_slotoff
_SUPERBLOCK = struct.Struct("<3I2BH2Q4I16s16sI3H")
# format xattrs mode nb size u ino uid gid mtime nsec nlink
_INODE_FORM = struct.Struct("<4HQ4IQ2I")
_DIRENT = struct.Struct("<QHBB")
# blocks mapped_blkaddr, behind the slot's tag
_SLOT_FORM = struct.Struct("<2I")
#: From one chunk's entry to the next in a segment: the block in it is the upper half.
_STEP = CHUNK // BLOCK << 32


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image: its bytes, read-only, the 16 bytes of its UUID, and how many devices its mount needs."""

    bytes: memoryview = field(repr=False)
    uuid: _Bytes
    devices: int


def write_image(tree: Tree, segments: Sequence[Sequence[Extent]], *, identity: bytes = b"") -> Image:
    """The image of `tree`, whose layer `i` is cut into `segments[i]`.

    `identity` goes into the UUID beside the tree and the segments: models that differ in their weights alone would
    otherwise share one. Raises Exhausted beyond a bound of ours or of EROFS, Malformed where the segments do not hold
    the tree's chunks.
    """
    devices = sum(map(len, segments))
    if devices > MOST_DEVICES:
        raise Exhausted(
            f"the model needs {devices} segments, and one mount holds at most {MOST_DEVICES}",
            "ask the producer to pack it as several models",
        )
    layers = _numbered(segments)
    plan = _Plan(tree, devices)
    image = bytearray(plan.size)
    _write_superblock(image, plan, devices)
    for at, segment in zip(count(HEAD + 64, _SLOT), chain.from_iterable(segments), strict=False):
        _SLOT_FORM.pack_into(image, at, -(-(segment.end - segment.start) // BLOCK), _NOWHERE)
    for number, inode in enumerate(plan.inodes):
        _write_inode(image, plan, number)
        if isinstance(inode, File):
            _write_chunks(image, plan.at[number] + _INODE, inode, layers)
        elif isinstance(inode, Symlink):
            image[plan.data[number] : plan.data[number] + len(inode.target)] = inode.target
        else:
            _write_directory(image, plan, number)
    uuid = _uuid(image, identity)
    image[_UUID_AT : _UUID_AT + 16] = uuid
    return Image(memoryview(image).toreadonly(), uuid, devices)


def parse_uuid(image_head: bytes) -> bytes:
    """The UUID in the first `HEAD` bytes of an image. Raises Malformed where they are none's."""
    if len(image_head) < HEAD or image_head[_SUPERBLOCK_AT : _SUPERBLOCK_AT + 4] != _MAGIC.to_bytes(4, "little"):
        raise Malformed(
            "the volume's image is no EROFS image, or cut short", "remove the volume and pull the model again"
        )
    return image_head[_UUID_AT : _UUID_AT + 16]


_Inode = File | Symlink | Folder


class _Plan:
    """Where everything lies, from lengths alone. A number is an inode's place in `inodes` and in each column: the root
    is first, a folder's children are together from `first_child` on, files that only links name there left out.

    `at` is the inode's offset in the image, `data` its directory's or target's, `sizes` their lengths, all in bytes.
    Columns and no objects: there may be a million inodes.
    """

    def __init__(self, tree: Tree, devices: int) -> None:
        self.meta = padded(HEAD + devices * _SLOT)
        self.inodes: list[_Inode] = [tree.root]
        self.parents, self.first_child = array("I", (0,)), array("I")
        self.links: Counter[int] = Counter()
        self._number()
        self.linked = {id(inode): number for number, inode in enumerate(self.inodes) if id(inode) in self.links}
        self.at, self.data, self.sizes = array("Q"), array("Q"), array("Q")
        end = self._place_data(self._place_inodes())
        if end > LARGEST_IMAGE:
            raise Exhausted(
                f"the tree of {tree.nodes} files and folders needs an image of {end >> 20} MiB, "
                f"more than {LARGEST_IMAGE >> 20}",
                "ask the producer to pack it with fewer files or shorter names",
            )
        self.size = end

    def nid(self, number: int) -> int:
        return (self.at[number] - self.meta) // _NID

    def nlink(self, number: int) -> int:
        inode = self.inodes[number]
        if isinstance(inode, Folder):
            return 2 + sum(isinstance(child, Folder) for child in inode.children)
        return 1 + self.links[id(inode)]

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        """A folder's names with the numbers of the inodes they name, sorted; `-` and others come before `.` and `..`."""
        return heapq.merge(self._children(number), ((b".", number), (b"..", self.parents[number])))

    def _children(self, number: int) -> Iterator[tuple[bytes, int]]:
        folder, below = self.inodes[number], self.first_child[number]
        for child in folder.children if isinstance(folder, Folder) else ():
            if isinstance(child, Link):
                yield child.name, self.linked[id(child.file)]
            else:
                yield child.name, below
                below += 1

    def _number(self) -> None:
        """Breadth first: `inodes` grows while it is walked."""
        for number, inode in enumerate(self.inodes):
            self.first_child.append(len(self.inodes))
            for child in inode.children if isinstance(inode, Folder) else ():
                if isinstance(child, Link):
                    self.links[id(child.file)] += 1
                else:
                    self.inodes.append(child)
                    self.parents.append(number)

    def _place_inodes(self) -> int:
        """Where the inodes end. Sizes are refused here, before anything is made as long as they say."""
        at, tables = self.meta + _INODE, 0
        for inode in self.inodes:
            self.at.append(at)
            table = 8 * -(-inode.size // CHUNK) if isinstance(inode, File) else 0
            tables += table
            if tables > LARGEST_CHUNK_TABLES:
                raise Exhausted(
                    f"the files' sizes add up to more than the {LARGEST_CHUNK_TABLES // 8 * CHUNK >> 40} TiB of one "
                    "volume",
                    "ask the producer to pack it as several models",
                )
            at += _aligned(_INODE + table)
        return at

    def _place_data(self, at: int) -> int:
        """Where the image ends, if the inodes end at `at`."""
        at = padded(at)
        for number, inode in enumerate(self.inodes):
            self.data.append(at)
            self.sizes.append(inode.size if isinstance(inode, File) else self._length(number))
            at += 0 if isinstance(inode, File) else padded(self.sizes[number])
        return at

    def _length(self, number: int) -> int:
        inode = self.inodes[number]
        if isinstance(inode, Symlink):
            return len(inode.target)
        length = 0
        for block in _blocks_of(self.names(number)):
            length = padded(length) + sum(_DIRENT.size + len(name) for name, _ in block)
        return length


def _aligned(length: int) -> int:
    """Rounded up to an inode's length, so that none lies across a block's end."""
    return -(-length // _INODE) * _INODE


def _blocks_of(names: Iterable[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    """`names` as they fill blocks; an entry and its name lie in one."""
    block: list[tuple[bytes, int]] = []
    room = BLOCK
    for name in names:
        needed = _DIRENT.size + len(name[0])
        if needed > room:
            yield block
            block, room = [], BLOCK
        block.append(name)
        room -= needed
    yield block


def _write_superblock(image: bytearray, plan: _Plan, devices: int) -> None:
    _SUPERBLOCK.pack_into(
        image, _SUPERBLOCK_AT, _MAGIC, 0, 0, _BLKSZBITS, 0, plan.nid(0), len(plan.inodes), 0, 0, len(image) // BLOCK,
        plan.meta // BLOCK, 0, bytes(16), bytes(16), _INCOMPAT, 0, devices, HEAD // _SLOT,
    )  # fmt: skip


def _write_inode(image: bytearray, plan: _Plan, number: int) -> None:
    inode = plan.inodes[number]
    layout, place = _PLAIN, plan.data[number] // BLOCK
    if isinstance(inode, File):
        kind = _S_IFREG
        layout, place = (_CHUNKED, _CHUNK_FORMAT) if inode.size else (_PLAIN, 0)
    else:
        kind = _S_IFDIR if isinstance(inode, Folder) else _S_IFLNK
    seconds, nanoseconds = divmod(min(max(inode.mtime, 0), _LATEST * 10**9), 10**9)
    _INODE_FORM.pack_into(
        image, plan.at[number], _EXTENDED | layout, 0, kind | inode.mode & 0o777, 0, plan.sizes[number], place,
        number + 1, inode.uid, inode.gid, seconds, nanoseconds, plan.nlink(number),
    )  # fmt: skip


def _write_directory(image: bytearray, plan: _Plan, number: int) -> None:
    for n, block in enumerate(_blocks_of(plan.names(number))):
        start = plan.data[number] + n * BLOCK
        offset = len(block) * _DIRENT.size
        for slot, (name, below) in enumerate(block):
            entry = start + slot * _DIRENT.size
            _DIRENT.pack_into(image, entry, plan.nid(below), offset, _file_type(plan.inodes[below]), 0)
            image[start + offset : start + offset + len(name)] = name
            offset += len(name)


def _file_type(inode: _Inode) -> int:
    if isinstance(inode, File):
        return _FT_FILE
    return _FT_DIRECTORY if isinstance(inode, Folder) else _FT_SYMLINK


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's segments: where each starts in the content, where the last ends, and the device number of the first."""

    starts: list[int]
    end: int
    first_device: int


def _numbered(segments: Sequence[Sequence[Extent]]) -> list[_Layer]:
    layers: list[_Layer] = []
    device = 1
    for number, extents in enumerate(segments):
        end = 0
        for extent in extents:
            if extent.start != end or extent.start % BLOCK or extent.length <= 0:
                raise Malformed(f"layer {number}: its segments do not follow each other at byte {end}")
            end = extent.end
        layers.append(_Layer([extent.start for extent in extents], end, device))
        device += len(extents)
    return layers


@lru_cache(maxsize=64)
def _run(chunks: int) -> tuple[int, int]:
    """A chunk table of so many entries is one long number: here a one in each entry, and how far each lies behind the first. So a
    table is made by a multiplication and a sum; made entry by entry, a large model's would take most of its image's time."""
    ones = struct.pack("<Q", 1) * chunks
    steps = struct.pack(f"<{chunks}Q", *range(0, chunks * _STEP, _STEP))
    return int.from_bytes(ones, "little"), int.from_bytes(steps, "little")


def _write_chunks(image: bytearray, at: int, file: File, layers: Sequence[_Layer]) -> None:
    """The chunk table of `file`, one run of equal steps for each segment that it meets."""
    if not file.size:
        return
    layer = layers[file.layer]
    end = file.offset + file.size
    if end > layer.end:
        raise Malformed(f"{file.name!r} reaches beyond the segments of layer {file.layer}")
    segment = bisect_right(layer.starts, file.offset) - 1
    start: int = file.offset
    while start < end:
        stop = layer.starts[segment + 1] if segment + 1 < len(layer.starts) else end
        if stop < end and (stop - file.offset) % CHUNK:
            raise Malformed(
                f"{file.name!r}: a segment of layer {file.layer} ends inside one of its chunks, at byte {stop}"
            )
        chunks = -(-(min(stop, end) - start) // CHUNK)
        first = (layer.first_device + segment) << 16 | (start - layer.starts[segment]) // BLOCK << 32
        ones, steps = _run(chunks)
        image[at : at + 8 * chunks] = (first * ones + steps).to_bytes(8 * chunks, "little")
        at += 8 * chunks
        start, segment = stop, segment + 1


def _uuid(image: bytearray, identity: bytes) -> bytes:
    """A UUID of version 8 (RFC 9562 §5.8) from the image as it is before it has one."""
    digest = hashlib.sha256(struct.pack("<I", len(identity)) + identity)
    digest.update(image)
    uuid = bytearray(digest.digest()[:16])
    uuid[6] = uuid[6] & 0x0F | 0x80
    uuid[8] = uuid[8] & 0x3F | 0x80
    return bytes(uuid)
