"""What is read of an image is the tree and the segments that it was written from; of a rotten one, that or Malformed."""

from __future__ import annotations

import mmap
import random
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.errors import Malformed
from modelvold.layer.cut import cut
from modelvold.layer.extent import BLOCK, CHUNK, ContentOffset, Extent, padded
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.pack.classify import natural_order
from modelvold.volume.erofs import write_image
from modelvold.volume.image import Extent3, ImageReader
from modelvold.volume.tree import File, Folder, Link, Symlink, Tree, merge

from tests.property.trees import NAMES, TARGETS, names

MIB = 1 << 20
GIB = 1 << 30
#: Where the superblock says how many blocks the image has.
BLOCKS_AT = 1024 + 36
DT_DIR, DT_REG, DT_LNK = 4, 8, 10
SIZES = st.one_of(
    st.sampled_from((0, 1, BLOCK, CHUNK - 1, CHUNK, CHUNK + 1, 16 * MIB, 64 * MIB, 64 * MIB + 1, 2 * GIB - 1)),
    st.integers(0, 100 * MIB),
)


@dataclass(frozen=True)
class Written:
    """A tree, how its layers are cut, and the image of both."""

    tree: Tree
    segments: Sequence[Sequence[Extent]]
    image: memoryview

    def reader(self) -> ImageReader:
        return ImageReader(self.image)

    def places(self, file: File, offset: int, length: int) -> list[Extent3]:
        """Where the bytes [offset, offset + length) of `file` lie: what they and each segment have in common."""
        first = sum(map(len, self.segments[: file.layer]))
        start, end = file.offset + offset, file.offset + min(offset + length, file.size)
        return [
            Extent3(first + n, max(start, segment.start) - segment.start, min(end, segment.end) - max(start, segment.start))
            for n, segment in enumerate(self.segments[file.layer])
            if max(start, segment.start) < min(end, segment.end)
        ]  # fmt: skip


def written(*tocs: Toc) -> Written:
    tree, segments = merge(tocs), [cut(toc) for toc in tocs]
    return Written(tree, segments, write_image(tree, segments).bytes)


@st.composite
def models(draw: st.DrawFn) -> Written:
    """Layers whose top folders differ; files begin at blocks with gaps between them, names meet in folders of their own."""
    layers = []
    for number in range(draw(st.integers(1, 3))):
        inner = draw(st.lists(st.lists(names(), min_size=1, max_size=4), max_size=12, unique_by=tuple))
        paths = {"/".join([f"layer{number}", *path]) for path in inner}
        above = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
        layers.append(draw(_tocs(sorted(paths - above))))
    return written(*layers)


@st.composite
def _tocs(draw: st.DrawFn, paths: list[str]) -> Toc:
    entries: list[Entry] = []
    end = 0
    for path in draw(st.permutations(paths)):
        kind = draw(st.sampled_from((Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK)))
        files = [entry.path for entry in entries if entry.kind is Kind.FILE]
        link = draw(st.sampled_from(TARGETS if kind is Kind.SYMLINK else files or ("",)))
        kind = Kind.FILE if kind is Kind.HARDLINK and not files else kind
        size = draw(SIZES) if kind is Kind.FILE else 0
        offset = padded(end) + BLOCK * draw(st.integers(0, 3))
        end = max(end, offset + size if size else 0)
        entries.append(
            Entry(
                path, kind, draw(st.integers(0, 0o7777)), draw(st.integers(0, 1 << 31)), draw(st.integers(0, 70_000)),
                draw(st.integers(-1, 4 * 10**18)), size, ContentOffset(offset if size else 0), link,
            )
        )  # fmt: skip
    return Toc(tuple(entries), end + draw(st.sampled_from((0, 1, 1024))))


@settings(max_examples=50, deadline=None)
@given(models())
def test_a_tree_reads_back_as_it_was_written(model: Written) -> None:
    reader = model.reader()
    assert reader.devices == sum(map(len, model.segments))
    assert reader.capacity == sum(padded(segment.length) for segment in chain.from_iterable(model.segments))
    check_inode(reader, reader.root, model.tree.root, 2 + sum(isinstance(c, Folder) for c in model.tree.root.children))
    check_names(reader, reader.root, model.tree.root)
    links = Counter(id(node.file) for _, node in model.tree.walk() if isinstance(node, Link))
    seen: dict[int, int] = {}
    for path, node in model.tree.walk():
        nid = reader.walk(path)
        assert nid is not None, path
        inode = node.file if isinstance(node, Link) else node
        assert seen.setdefault(id(inode), nid) == nid
        if isinstance(inode, Folder):
            check_inode(reader, nid, inode, 2 + sum(isinstance(child, Folder) for child in inode.children))
            check_names(reader, nid, inode)
        elif isinstance(inode, Symlink):
            check_inode(reader, nid, inode, 1)
            assert reader.target(nid) == inode.target
        else:
            check_inode(reader, nid, inode, 1 + links[id(inode)])
            assert list(reader.extents(nid, 0, inode.size)) == model.places(inode, 0, inode.size)
    assert len(set(seen.values())) == len(seen)
    assert reader.root not in seen.values()


def check_inode(reader: ImageReader, nid: int, node: File | Symlink | Folder, nlink: int) -> None:
    inode = reader.inode(nid)
    kind = {File: stat.S_IFREG, Symlink: stat.S_IFLNK, Folder: stat.S_IFDIR}[type(node)]
    assert (inode.nid, inode.mode, inode.nlink) == (nid, kind | node.mode & 0o777, nlink)
    assert (inode.uid, inode.gid, inode.mtime) == (node.uid, node.gid, max(0, node.mtime))
    if isinstance(node, File):
        assert inode.size == node.size
    elif isinstance(node, Symlink):
        assert inode.size == len(node.target)


def check_names(reader: ImageReader, nid: int, folder: Folder) -> None:
    found = reader.names(nid)
    assert [name for name, _, _ in found] == in_natural_order(child.name for child in folder.children)
    assert [reader.lookup(nid, name) for name, _, _ in found] == [below for _, below, _ in found]
    kinds = {
        child.name: DT_DIR if isinstance(child, Folder) else DT_LNK if isinstance(child, Symlink) else DT_REG
        for child in folder.children
    }
    assert {name: kind for name, _, kind in found} == kinds
    assert reader.lookup(nid, b".") == nid
    there = {b".", b"..", *kinds}
    for name in (*kinds, *(name.encode() for name in NAMES), b"", b"\0", b"\xff" * 255):
        for near in (name, name[:-1], name + b"\0", name + b"a", name[:-1] + b"\xff"):
            assert (reader.lookup(nid, near) is not None) is (near in there), near


def in_natural_order(found: Iterable[bytes]) -> list[bytes]:
    return sorted(found, key=lambda name: natural_order(name.decode("utf-8", "surrogateescape")))


@settings(max_examples=50, deadline=None)
@given(models(), st.data())
def test_any_range_of_a_file_reads_back(model: Written, choice: st.DataObject) -> None:
    reader = model.reader()
    for path, file in model.tree.files():
        nid = reader.walk(path)
        assert nid is not None
        edges = st.sampled_from((0, CHUNK, file.size, 2 * MIB, 16 * MIB)).flatmap(
            lambda at: st.integers(at - 1, at + 1)
        )
        offset = max(0, choice.draw(st.one_of(edges, st.integers(0, file.size))))
        length = max(0, choice.draw(st.one_of(edges, st.integers(0, 2 * MIB))))
        assert list(reader.extents(nid, offset, length)) == model.places(file, offset, length)


def test_names_stand_in_natural_order() -> None:
    shuffled = ["model-10", "model-2", "b", "model-1", "a10", "a9", "-"]
    reader = written(Toc(tuple(Entry(f"m/{name}") for name in shuffled), 0)).reader()
    folder = reader.walk(b"m")
    assert folder is not None
    assert [name.decode() for name, _, _ in reader.names(folder)] == [
        "-", "a9", "a10", "b", "model-1", "model-2", "model-10",
    ]  # fmt: skip


def test_every_name_of_a_folder_of_many_blocks_is_found() -> None:
    every = [f"{'x' * (n % 250)}{n:04}" for n in range(2000)]
    reader = written(Toc(tuple(Entry(name) for name in every), 0)).reader()
    below = {reader.lookup(reader.root, name.encode()) for name in every}
    assert len(below) == len(every)
    assert None not in below
    assert len(reader.names(reader.root)) == len(every)
    assert not any(reader.lookup(reader.root, name.encode() + b"-") for name in every)


def test_paths_lead_through_folders_alone() -> None:
    entries = (Entry("a/f"), Entry("a/l", Kind.SYMLINK, link="../a"))
    reader = written(Toc(entries, 0)).reader()
    assert reader.walk(b"") == reader.root
    assert reader.walk(b"a/..") == reader.root
    for path in (b"/", b"a/", b"a//f", b"/a", b"a/f/x", b"a/l/f", b"x/f"):
        assert reader.walk(path) is None


def test_what_is_asked_of_another_kind_is_malformed() -> None:
    reader = written(Toc((Entry("f"), Entry("l", Kind.SYMLINK, link="f")), 0)).reader()
    file, link = reader.walk(b"f"), reader.walk(b"l")
    assert file is not None
    assert link is not None
    for wrong in (
        lambda: reader.lookup(file, b"x"), lambda: reader.names(link), lambda: reader.target(file),
        lambda: reader.target(reader.root), lambda: list(reader.extents(reader.root, 0, 1)),
        lambda: list(reader.extents(link, 0, 1)),
    ):  # fmt: skip
        with pytest.raises(Malformed):
            wrong()


@pytest.mark.parametrize("nid", [-2, 0, 1, 3, 1 << 20, 1 << 32, 1 << 64])
def test_no_inode_where_none_can_be(nid: int) -> None:
    with pytest.raises(Malformed):
        written(toc_of_raw("f", 1, 0o644, 0)).reader().inode(nid)


def test_a_mapped_image_can_be_let_go() -> None:
    model = written(toc_of_raw("a/f", 3 * MIB, 0o644, 5))
    with tempfile.TemporaryFile() as file:
        file.write(model.image)
        file.flush()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            reader = ImageReader(mapped)
            nid = reader.walk(b"a/f")
            assert nid is not None
            assert list(reader.extents(nid, 0, 3 * MIB)) == [Extent3(0, 0, 3 * MIB)]
            assert (reader.inode(nid).mtime, reader.uuid) == (5, model.reader().uuid)


def test_a_range_of_the_largest_file_costs_what_it_is_long() -> None:
    size = 700 * GIB
    reader = written(toc_of_raw("model.safetensors", size, 0o644, 0)).reader()
    nid = reader.walk(b"model.safetensors")
    assert nid is not None
    start = time.thread_time()
    for number in range(2000):
        assert list(reader.extents(nid, size // 2000 * number, MIB))
    # 4 µs each where this was written; all of the chunk table would be a hundred times the bound.
    assert time.thread_time() - start < 2000 * 200e-6


@lru_cache(maxsize=1)
def specimen() -> bytes:
    """A small image that has something of everything."""
    entries = (
        Entry("a/f", size=3 * MIB + 1, offset=ContentOffset(512)),
        Entry("a/l", Kind.SYMLINK, link="f"),
        Entry("h", Kind.HARDLINK, link="a/f"),
        Entry("empty"),
        *(Entry(f"many/{'n' * 40}{n}") for n in range(12)),
    )
    tail = toc_of_raw("tail", 17 * MIB, 0o600, 7)
    return bytes(written(Toc(entries, 4 * MIB), tail).image)


def read_all(image: bytes | bytearray) -> int:
    """Asks all there is to ask; how many answers there were, and no other failure than Malformed. Rotten folders may hold themselves."""
    try:
        reader = ImageReader(memoryview(image))
    except Malformed:
        return 0
    answers, waiting, seen = 0, [reader.root], {reader.root}
    asks: tuple[Callable[[int], object], ...] = (
        reader.inode,
        reader.target,
        lambda nid: reader.lookup(nid, b"nn"),
        lambda nid: extents(reader, nid, 0, 1 << 64),
        lambda nid: extents(reader, nid, 3 * MIB, 64 << 10),
        lambda nid: waiting.extend(below - seen if (below := nids(reader, nid, len(image))) else ()),
    )
    while waiting and answers < 2000:
        nid = waiting.pop()
        seen.add(nid)
        for ask in asks:
            with suppress(Malformed):
                ask(nid)
                answers += 1
    return answers


def extents(reader: ImageReader, nid: int, offset: int, length: int) -> None:
    for extent in islice(reader.extents(nid, offset, length), 1000):
        assert 0 <= extent.device < reader.devices
        assert extent.length > 0
        assert 0 <= extent.offset <= reader.capacity - extent.length


def nids(reader: ImageReader, nid: int, length: int) -> set[int]:
    """What the names of a folder lead to, once each."""
    below = reader.names(nid)
    assert len(below) <= length // 13
    for name, found, _ in below:
        with suppress(Malformed):
            assert reader.lookup(nid, name) == found
    return {found for _, found, _ in below}


def test_whatever_one_byte_has_become_is_an_answer_or_malformed() -> None:
    image = bytearray(specimen())
    sound, choose = read_all(image), random.Random(7)
    assert sound > 50
    for at in range(1024, len(image)):
        kept = image[at]
        image[at] ^= choose.randint(1, 0xFF)
        read_all(image)
        image[at] = kept
    assert read_all(image) == sound


@settings(deadline=5000)
@given(
    st.lists(st.tuples(st.integers(1024, len(specimen()) - 8), st.binary(min_size=1, max_size=8)), max_size=12),
    st.one_of(st.just(len(specimen())), st.integers(0, len(specimen()))),
)
def test_whatever_an_image_has_become_is_an_answer_or_malformed(changes: list[tuple[int, bytes]], length: int) -> None:
    image = bytearray(specimen())
    for at, new in changes:
        image[at : at + len(new)] = new
    blocks = length // BLOCK
    image[BLOCKS_AT : BLOCKS_AT + 4] = blocks.to_bytes(4, "little")
    read_all(image[: blocks * BLOCK])


@given(st.binary(max_size=4096))
def test_no_image_is_malformed(noise: bytes) -> None:
    with pytest.raises(Malformed):
        ImageReader(memoryview(noise))
