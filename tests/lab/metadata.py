"""What a containerd knows of a snapshotter, read from its database, its metadata being above every snapshotter.

containerd gives each of its snapshots another name below, `<namespace>/<number>/<key>` or the one that a remote snapshotter chose, and does
not tell it: its own List asks the snapshotter for each, and leaves out what that does not have. The name stands in the database alone,
which is bbolt's: pages of a B+ tree, written anew and never over one that a finished transaction needs. So it can be read while nobody
writes, and after a kill.

    v1/<namespace>/snapshots/<snapshotter>/<key>/{name, parent, …}      (containerd `core/metadata/buckets.go`)
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.containerd import Containerd


@dataclass(frozen=True, slots=True)
class Known:
    """One snapshot in containerd's database. `name` is the snapshotter's for it; `parent` is a key, as `key` is."""

    namespace: str
    key: str
    name: str
    parent: str


def known(containerd: Containerd, snapshotter: str) -> list[Known]:
    """Every snapshot that its database has of `snapshotter`, in all namespaces. It is dead, or nobody asks anything of it."""
    path = containerd.root / "lib/io.containerd.metadata.v1.bolt/meta.db"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        found = []
        for namespace, objects in _youngest(pages).bucket("v1").items():
            if not isinstance(objects, _Bucket):
                continue
            for key, fields in objects.bucket("snapshots").bucket(snapshotter).items():
                assert isinstance(fields, _Bucket)
                found.append(Known(namespace.decode(), key.decode(), fields.text("name"), fields.text("parent")))
        return found


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A tree of pages, or one page within a value. One that does not exist is empty."""

    pages: mmap.mmap | bytes
    page_size: int = 0
    root: int = 0
    inline: bytes | None = b""

    def items(self) -> Iterator[tuple[bytes, bytes | _Bucket]]:
        if self.inline is None:
            yield from self._page(self.pages, self.root * self.page_size)
        elif self.inline:
            yield from self._page(self.inline, 0)

    def bucket(self, name: str) -> _Bucket:
        found = dict(self.items()).get(name.encode())
        return found if isinstance(found, _Bucket) else _Bucket(self.pages)

    def text(self, name: str) -> str:
        found = dict(self.items()).get(name.encode(), b"")
        assert isinstance(found, bytes)
        return found.decode()

    def _page(self, space: mmap.mmap | bytes, at: int) -> Iterator[tuple[bytes, bytes | _Bucket]]:
        """A page has id (8 bytes), flags, count, overflow (4); then count elements of 16 bytes that say where, from
        themselves, key and value lie."""
        flags, count = struct.unpack_from("<HH", space, at + 8)
        for element in range(at + 16, at + 16 + 16 * count, 16):
            if flags & 1:  # a branch
                (page,) = struct.unpack_from("<Q", space, element + 8)
                yield from self._page(self.pages, page * self.page_size)
                continue
            assert flags & 2, f"page at {at}: flags {flags:#x}"
            is_bucket, where, key_size, size = struct.unpack_from("<IIII", space, element)
            start = element + where
            key, value = space[start : start + key_size], space[start + key_size : start + key_size + size]
            yield key, self._inner(value) if is_bucket & 1 else value

    def _inner(self, value: bytes) -> _Bucket:
        (root,) = struct.unpack_from("<Q", value)
        return _Bucket(self.pages, self.page_size, root, None if root else value[16:])


def _youngest(pages: mmap.mmap) -> _Bucket:
    """The root of the younger of the two meta pages that are whole."""
    (size,) = struct.unpack_from("<I", pages, 16 + 8)
    roots = []
    for at in (16, 16 + size):
        magic, _, _, _, root, _, _, _, transaction, checksum = struct.unpack_from("<IIIIQQQQQQ", pages, at)
        if magic == 0xED0CDAED and checksum == _fnv(pages[at : at + 56]):
            roots.append((transaction, root))
    return _Bucket(pages, size, max(roots)[1], None)


def _fnv(content: bytes) -> int:
    """FNV-1a of 64 bits."""
    summed = 0xCBF29CE484222325
    for byte in content:
        summed = (summed ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return summed
