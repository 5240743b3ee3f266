"""The image, read back by a few lines of its own; kernel and fsck.erofs read it in tests/property/test_image.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import pytest
from modelvold.errors import Exhausted, Malformed
from modelvold.layer.cut import cut
from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.volume import erofs
from modelvold.volume.erofs import HEAD, Image, parse_uuid, write_image
from modelvold.volume.tree import merge

MIB = 1 << 20


def image_of(*tocs: Toc, identity: bytes = b"") -> Image:
    return write_image(merge(tocs), [cut(toc) for toc in tocs], identity=identity)


@dataclass(frozen=True)
class Inode:
    nid: int
    layout: int
    mode: int
    size: int
    place: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    nlink: int


class Reader:
    def __init__(self, image: memoryview) -> None:
        self.image = image
        (self.magic,) = struct.unpack_from("<I", image, 1024)
        (self.root,) = struct.unpack_from("<H", image, 1024 + 14)
        (self.inodes,) = struct.unpack_from("<Q", image, 1024 + 16)
        (self.blocks, self.meta) = struct.unpack_from("<2I", image, 1024 + 36)
        (self.devices, self.slot) = struct.unpack_from("<2H", image, 1024 + 86)

    def inode(self, nid: int) -> Inode:
        fields = struct.unpack_from("<4HQ4IQ2I", self.image, self.meta * 512 + nid * 32)
        assert fields[0] & 1
        return Inode(nid, fields[0] >> 1, fields[2], fields[4], fields[5], *fields[7:])

    def names(self, folder: Inode) -> dict[bytes, int]:
        names: dict[bytes, int] = {}
        for start in range(folder.place * 512, folder.place * 512 + folder.size, 512):
            block = self.image[start : min(start + 512, folder.place * 512 + folder.size)]
            count = struct.unpack_from("<QH", block)[1] // 12
            entries = [struct.unpack_from("<QHBB", block, 12 * n) for n in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            names |= {bytes(block[e[1] : end]).rstrip(b"\0"): e[0] for e, end in zip(entries, ends, strict=True)}
        return names

    def types(self, folder: Inode) -> set[int]:
        """The file types that the entries of a folder of one block give."""
        count = struct.unpack_from("<QH", self.image, folder.place * 512)[1] // 12
        return {struct.unpack_from("<QHBB", self.image, folder.place * 512 + 12 * n)[2] for n in range(count)}

    def find(self, path: str) -> Inode:
        inode = self.inode(self.root)
        for name in path.encode().split(b"/") if path else []:
            inode = self.inode(self.names(inode)[name])
        return inode

    def chunks(self, path: str) -> list[tuple[int, int]]:
        """(device, block) of each chunk."""
        inode = self.find(path)
        assert (inode.layout, inode.place) == (4, 11 | 0x20)
        at = self.meta * 512 + inode.nid * 32 + 64
        entries = struct.iter_unpack("<HHI", self.image[at : at + 8 * -(-inode.size // CHUNK)])
        return [(device, block) for _, device, block in entries]

    def device_blocks(self) -> list[int]:
        return [struct.unpack_from("<I", self.image, self.slot * 128 + 128 * n + 64)[0] for n in range(self.devices)]


def test_the_superblock_counts_what_is_there() -> None:
    image = image_of(toc_of_raw("a/b", 17 * MIB + 1, 0o644, 0), toc_of_raw("c", 5, 0o644, 0))
    reader = Reader(image.bytes)

    assert reader.magic == 0xE0F5E1E2
    assert (reader.inodes, reader.blocks * 512) == (4, len(image.bytes))
    assert reader.devices == image.devices == 3
    assert reader.device_blocks() == [16 * 2048, 2048 + 1, 1]


def test_each_chunk_points_into_its_segment() -> None:
    layers = (toc_of_raw("small", 3 * MIB + 1, 0o644, 0), toc_of_raw("large", 64 * MIB + 1, 0o644, 0))
    reader = Reader(image_of(*layers).bytes)

    assert reader.chunks("small") == [(1, n * 2048) for n in range(4)]
    expected = [(2 + n, c * 2048) for n, segment in enumerate(cut(layers[1])) for c in range(-(-segment.length // MIB))]
    assert reader.chunks("large") == expected
    assert len(expected) == 65


def test_files_inside_a_shared_segment_point_to_their_own_blocks() -> None:
    toc = Toc((Entry("a", size=513, offset=ContentOffset(512)), Entry("b", size=1, offset=ContentOffset(2048))), 2049)
    reader = Reader(image_of(toc).bytes)
    assert (reader.chunks("a"), reader.chunks("b")) == ([(1, 1)], [(1, 4)])


def test_inodes_say_what_the_toc_says_within_the_guard() -> None:
    toc = Toc(
        (
            Entry("suid", mode=0o106755, uid=7, gid=70000, mtime=1_700_000_000_000_000_001),
            Entry("past", mtime=-1),
            Entry("future", mtime=1 << 100),
            Entry("d/e", Kind.DIRECTORY, mode=0o41777),
            Entry("d/l", Kind.SYMLINK, link="target"),
        ),
        0,
    )
    image = image_of(toc)
    reader = Reader(image.bytes)

    assert reader.find("suid") == Inode(reader.find("suid").nid, 0, 0o100755, 0, 0, 7, 70000, 1_700_000_000, 1, 1)
    assert (reader.find("past").mtime, reader.find("future").mtime) == (0, 1 << 62)
    assert (reader.find("d/e").mode, reader.find("d").nlink, reader.find("").nlink) == (0o40777, 3, 3)
    link = reader.find("d/l")
    assert bytes(image.bytes[link.place * 512 :][: link.size]) == b"target"
    assert min(reader.names(reader.find("")).values()) > 0


def test_all_names_of_a_file_are_one_inode() -> None:
    entries = (
        Entry("m/f", mode=0o640, uid=1, size=CHUNK + 1),
        Entry("a/l", Kind.HARDLINK, mode=0o777, uid=9, link="m/f"),
        Entry("m/e", Kind.HARDLINK, link="m/f"),
        Entry("empty"),
        Entry("twin/empty"),
        Entry("z/empty", Kind.HARDLINK, link="empty"),
        Entry("z/folder/f"),
    )
    reader = Reader(image_of(Toc(entries, CHUNK + 1), toc_of_raw("theirs", 1, 0o644, 0)).bytes)

    shared = reader.find("m/f")
    assert reader.find("a/l") == reader.find("m/e") == shared
    assert (shared.mode, shared.uid, shared.size, shared.nlink) == (0o100640, 1, CHUNK + 1, 3)
    assert reader.chunks("a/l") == [(1, 0), (1, 2048)]
    assert reader.find("empty") == reader.find("z/empty")
    assert reader.find("z/empty").nlink == 2
    # Equal nodes, and yet two files.
    assert reader.find("twin/empty").nid != reader.find("empty").nid
    assert reader.find("twin/empty").nlink == 1
    assert (reader.find("z/folder").nlink, reader.find("z").nlink) == (2, 3)
    assert reader.types(reader.find("a")) == reader.types(reader.find("m")) == {1, 2}
    # root, a, m, twin, z, z/folder; m/f, empty, twin/empty, theirs, z/folder/f.
    assert reader.inodes == 11


def test_the_root_is_as_its_entry_says() -> None:
    toc = Toc((Entry("f", mtime=5), Entry("", Kind.DIRECTORY, mode=0o41711, uid=3, gid=4, mtime=7_000_000_001)), 0)
    root = Reader(image_of(toc).bytes).find("")
    assert (root.mode, root.uid, root.gid, root.mtime, root.nsec, root.nlink) == (0o40711, 3, 4, 7, 1, 2)


def test_a_folder_of_many_names_fills_blocks_in_order() -> None:
    names = sorted({f"{'x' * (n % 250)}{n}" for n in range(300)} | {"-", "!", ".-", "..x"})
    reader = Reader(image_of(Toc(tuple(Entry(name) for name in names), 0)).bytes)
    root = reader.find("")

    found = list(reader.names(root))
    assert found == sorted([*(name.encode() for name in names), b".", b".."])
    assert reader.names(root)[b"."] == reader.names(root)[b".."] == reader.root


def test_every_folder_names_itself_and_the_one_above() -> None:
    reader = Reader(image_of(Toc(tuple(Entry(path) for path in ("a/ /x", "a/b/c/y", "-/z", "f")), 0)).bytes)
    for path in ("a", "a/ ", "a/b", "a/b/c", "-"):
        folder, above = reader.find(path), reader.find(path.rpartition("/")[0])
        assert (reader.names(folder)[b"."], reader.names(folder)[b".."]) == (folder.nid, above.nid), path


def test_equal_trees_give_equal_images_and_others_another_uuid() -> None:
    toc = toc_of_raw("m", 5 * MIB, 0o644, 1)
    image = image_of(toc)
    others = [
        image_of(toc, identity=b"a"),
        image_of(toc, identity=b"b"),
        image_of(toc_of_raw("n", 5 * MIB, 0o644, 1)),
        image_of(toc_of_raw("m", 5 * MIB, 0o644, 2)),
        write_image(
            merge([toc]),
            [[Extent(ContentOffset(0), ContentOffset(MIB)), Extent(ContentOffset(MIB), ContentOffset(5 * MIB))]],
        ),
    ]

    assert image == image_of(toc)
    assert len({image.uuid, *(other.uuid for other in others)}) == 6
    assert UUID(bytes=image.uuid).version == 8
    assert parse_uuid(bytes(image.bytes[:HEAD])) == image.uuid


@pytest.mark.parametrize("head", [b"", bytes(HEAD), b"x" * HEAD])
def test_no_uuid_in_what_is_no_image(head: bytes) -> None:
    with pytest.raises(Malformed, match="no EROFS image"):
        parse_uuid(head)


def test_more_segments_than_devices_are_refused() -> None:
    toc = toc_of_raw("m", 65_536 * 512, 0o644, 0)
    segments = [Extent(ContentOffset(n * 512), ContentOffset(n * 512 + 512)) for n in range(65_536)]
    with pytest.raises(Exhausted, match=r"65536 segments.*65535"):
        write_image(merge([toc]), [segments])


def test_sizes_that_would_take_our_memory_are_refused_before_it_is_taken() -> None:
    toc = toc_of_raw("m", 1 << 49, 0o644, 0)
    with pytest.raises(Exhausted, match="8 TiB"):
        write_image(merge([toc]), [[Extent(ContentOffset(0), ContentOffset(toc.length))]])


def test_an_image_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erofs, "LARGEST_IMAGE", 1 << 16)
    image_of(toc_of_raw("m", 1, 0o644, 0))
    with pytest.raises(Exhausted, match="tree of 1001 files and folders"):
        image_of(Toc(tuple(Entry(f"{n}") for n in range(1000)), 0))


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ([0, MIB + 512, 3 * MIB], "inside one of its chunks, at byte 1049088"),
        ([0, MIB], "beyond the segments of layer 0"),
        ([MIB, 3 * MIB], "do not follow"),
        ([0, 100, 3 * MIB], "do not follow"),
        ([0, 0, 3 * MIB], "do not follow"),
    ],
)
def test_segments_that_do_not_hold_the_tree_are_refused(bounds: list[int], why: str) -> None:
    toc = toc_of_raw("m", 3 * MIB, 0o644, 0)
    segments = [Extent(ContentOffset(a), ContentOffset(b)) for a, b in pairwise(bounds)]
    with pytest.raises(Malformed, match=why):
        write_image(merge([toc]), [segments])
