"""The EROFS image of a volume: the tree alone; file bytes lie in devices, one segment each.

Layout (fs/erofs/erofs_fs.h), little-endian, in blocks of 512 bytes because there a tar puts a file's first byte:

    1024   superblock, 128 bytes
    1152   device table, 128 bytes a segment, in order of layers, then segments; devices are numbered from 1
    meta   64 bytes unused, since programs take the inode number 0 for a deleted name; then inodes of 64 bytes, the
           root's first (its number has 16 bits); a file's chunk table follows its inode: 8 bytes a chunk, the device
           and the block in it
    data   directories and targets of symbolic links, each from a block of its own

The kernel parses what is written here, so this is the guard: permission bits only, no devices, no extended attributes,
sizes refused before memory is taken for them. Equal trees and segments give equal bytes.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import BLOCK, CHUNK, Extent, padded
from modelvold.volume.tree import File, Folder, Node, Symlink, Tree

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


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image: its bytes, the 16 bytes of its UUID, and how many devices its mount needs."""

    bytes: _Bytes = field(repr=False)
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
    _write_superblock(image, plan, tree.nodes, devices)
    slots = (_SLOT * n + HEAD + 64 for n in range(devices))
    for at, segment in zip(slots, chain.from_iterable(segments), strict=True):
        struct.pack_into("<2I", image, at, padded(segment.length) // BLOCK, _NOWHERE)
    for inode in plan.inodes:
        _write_inode(image, inode)
        node = inode.node
        if isinstance(node, File):
            _write_chunks(image, inode.at + _INODE, node, layers)
        elif isinstance(node, Symlink):
            image[inode.data : inode.data + len(node.target)] = node.target
        else:
            _write_directory(image, plan, inode)
    uuid = _uuid(image, identity)
    image[_UUID_AT : _UUID_AT + 16] = uuid
    return Image(bytes(image), uuid, devices)


def parse_uuid(image_head: bytes) -> bytes:
    """The UUID in the first `HEAD` bytes of an image. Raises Malformed where they are none's."""
    if len(image_head) < HEAD or image_head[_SUPERBLOCK_AT : _SUPERBLOCK_AT + 4] != _MAGIC.to_bytes(4, "little"):
        raise Malformed(
            "the volume's image is no EROFS image, or cut short", "remove the volume and pull the model again"
        )
    return image_head[_UUID_AT : _UUID_AT + 16]


@dataclass(slots=True)
class _Inode:
    """A node's place: `at` is its inode's offset in the image, `data` its directory's or target's, both in bytes."""

    node: Node
    parent: int
    number: int
    at: int = 0
    data: int = 0
    size: int = 0
    first_child: int = 0


class _Plan:
    """Where everything lies, from lengths alone. In `inodes` the root is first and a folder's children are together."""

    def __init__(self, tree: Tree, devices: int) -> None:
        self.meta = padded(HEAD + devices * _SLOT)
        self.inodes = list(_breadth_first(tree))
        tables = 0
        at = self.meta + _INODE
        for inode in self.inodes:
            inode.at, inode.size = at, _size(inode)
            table = 8 * _chunks(inode.node)
            tables += table
            at += _aligned(_INODE + table)
        if tables > LARGEST_CHUNK_TABLES:
            raise Exhausted(
                f"the files' sizes add up to more than the {LARGEST_CHUNK_TABLES // 8 * CHUNK >> 40} TiB of one volume",
                "ask the producer to pack it as several models",
            )
        at = padded(at)
        for inode in self.inodes:
            if not isinstance(inode.node, File):
                inode.data = at
                at += padded(inode.size)
        if at > LARGEST_IMAGE:
            raise Exhausted(
                f"the tree of {len(self.inodes)} files and folders needs an image of {at >> 20} MiB, "
                f"more than {LARGEST_IMAGE >> 20}",
                "ask the producer to pack it with fewer files or shorter names",
            )
        self.size = at

    def nid(self, index: int) -> int:
        return (self.inodes[index].at - self.meta) // _NID


def _breadth_first(tree: Tree) -> Iterator[_Inode]:
    ready = [_Inode(tree.root, 0, 0)]
    for index, inode in enumerate(ready):
        yield inode
        if isinstance(inode.node, Folder):
            first = inode.first_child = len(ready)
            ready.extend(_Inode(child, index, first + n) for n, child in enumerate(inode.node.children))


def _size(inode: _Inode) -> int:
    node = inode.node
    if isinstance(node, File):
        return node.size
    if isinstance(node, Symlink):
        return len(node.target)
    blocks = _blocks_of(_names(inode))
    return (len(blocks) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name, _ in blocks[-1])


def _chunks(node: Node) -> int:
    return -(-node.size // CHUNK) if isinstance(node, File) else 0


def _aligned(length: int) -> int:
    """Rounded up to an inode's length, so that none lies across a block's end."""
    return -(-length // _INODE) * _INODE


def _names(inode: _Inode) -> list[tuple[bytes, int]]:
    """A folder's names with the index of what they name, sorted; `-` and others come before `.` and `..`."""
    children = inode.node.children if isinstance(inode.node, Folder) else ()
    names = [(child.name, inode.first_child + n) for n, child in enumerate(children)]
    return sorted([*names, (b".", inode.number), (b"..", inode.parent)])


def _blocks_of(names: list[tuple[bytes, int]]) -> list[list[tuple[bytes, int]]]:
    """`names` as they fill blocks; an entry and its name lie in one."""
    blocks: list[list[tuple[bytes, int]]] = [[]]
    room = BLOCK
    for name in names:
        needed = _DIRENT.size + len(name[0])
        if needed > room:
            blocks.append([])
            room = BLOCK
        blocks[-1].append(name)
        room -= needed
    return blocks


def _write_superblock(image: bytearray, plan: _Plan, nodes: int, devices: int) -> None:
    _SUPERBLOCK.pack_into(
        image, _SUPERBLOCK_AT, _MAGIC, 0, 0, _BLKSZBITS, 0, plan.nid(0), nodes, 0, 0, len(image) // BLOCK,
        plan.meta // BLOCK, 0, bytes(16), bytes(16), _INCOMPAT, 0, devices, HEAD // _SLOT,
    )  # fmt: skip


def _write_inode(image: bytearray, inode: _Inode) -> None:
    node = inode.node
    layout, place, links = _PLAIN, inode.data // BLOCK, 1
    if isinstance(node, File):
        kind = _S_IFREG
        if node.size:
            layout, place = _CHUNKED, _CHUNK_FORMAT
    elif isinstance(node, Folder):
        kind = _S_IFDIR
        links = 2 + sum(isinstance(child, Folder) for child in node.children)
    else:
        kind = _S_IFLNK
    seconds, nanoseconds = divmod(min(max(node.mtime, 0), _LATEST * 10**9), 10**9)
    _INODE_FORM.pack_into(
        image, inode.at, _EXTENDED | layout, 0, kind | node.mode & 0o777, 0, inode.size, place, inode.number + 1,
        node.uid, node.gid, seconds, nanoseconds, links,
    )  # fmt: skip


def _write_directory(image: bytearray, plan: _Plan, inode: _Inode) -> None:
    for n, block in enumerate(_blocks_of(_names(inode))):
        start = inode.data + n * BLOCK
        offset = len(block) * _DIRENT.size
        for slot, (name, index) in enumerate(block):
            entry = start + slot * _DIRENT.size
            _DIRENT.pack_into(image, entry, plan.nid(index), offset, _file_type(plan.inodes[index].node), 0)
            image[start + offset : start + offset + len(name)] = name
            offset += len(name)


def _file_type(node: Node) -> int:
    if isinstance(node, File):
        return _FT_FILE
    return _FT_DIRECTORY if isinstance(node, Folder) else _FT_SYMLINK


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
        step = CHUNK // BLOCK << 32
        struct.pack_into(f"<{chunks}Q", image, at, *range(first, first + chunks * step, step))
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
