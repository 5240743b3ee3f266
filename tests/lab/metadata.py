"""What a containerd knows of a snapshotter: asked at its own door, and read from its database, its metadata being above every snapshotter.

containerd gives each of its snapshots another name below, `<namespace>/<number>/<key>` or the one that a remote snapshotter chose, and does
not tell it: its own List asks the snapshotter for each, and leaves out what that does not have. The name stands in the database alone,
which is bbolt's: pages of a B+ tree, written anew and never over one that a finished transaction needs. So it can be read while nobody
writes, and after a kill.

    v1/<namespace>/snapshots/<snapshotter>/<key>/{name, parent, …}      (containerd `core/metadata/buckets.go`)
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from modelvold.rpc.gen import mount_pb2, snapshots_pb2, snapshots_pb2_grpc

from tests.lab.containerd import Containerd

_TIMEOUT = 120.0
_LARGEST = 16 << 20  # of a message: containerd's own bound


@dataclass(frozen=True, slots=True)
class Known:
    """One snapshot in containerd's database. `name` is the snapshotter's for it; `parent` is a key, as `key` is."""

    namespace: str
    key: str
    name: str
    parent: str


class Snapshots:
    """The ten verbs, asked of `snapshotter` in `namespace` at a socket: a containerd's, or a snapshotter's own, which looks at neither.
    Errors are grpc.RpcError. Closes with its `with`."""

    def __init__(self, socket: Path, snapshotter: str, namespace: str = "default") -> None:
        options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.max_receive_message_length", _LARGEST)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options)
        self._stub = snapshots_pb2_grpc.SnapshotsStub(self._channel)  # type: ignore[no-untyped-call]
        self._named = {"snapshotter": snapshotter}
        self._meta = (("containerd-namespace", namespace),)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(**self._named, key=key, parent=parent, labels=labels)
        return list(self._stub.Prepare(request, _TIMEOUT, self._meta).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.ViewSnapshotRequest(**self._named, key=key, parent=parent, labels=labels)
        return list(self._stub.View(request, _TIMEOUT, self._meta).mounts)

    def mounts(self, key: str) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.MountsRequest(**self._named, key=key)
        return list(self._stub.Mounts(request, _TIMEOUT, self._meta).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        request = snapshots_pb2.CommitSnapshotRequest(**self._named, name=name, key=key, labels=labels)
        self._stub.Commit(request, _TIMEOUT, self._meta)

    def remove(self, key: str) -> None:
        self._stub.Remove(snapshots_pb2.RemoveSnapshotRequest(**self._named, key=key), _TIMEOUT, self._meta)

    def stat(self, key: str) -> snapshots_pb2.Info:
        request = snapshots_pb2.StatSnapshotRequest(**self._named, key=key)
        info: snapshots_pb2.Info = self._stub.Stat(request, _TIMEOUT, self._meta).info
        return info

    def label(self, key: str, label: str, value: str) -> snapshots_pb2.Info:
        """Update, of one label."""
        wanted = snapshots_pb2.Info(name=key, labels={label: value})
        mask = FieldMask(paths=[f"labels.{label}"])
        request = snapshots_pb2.UpdateSnapshotRequest(**self._named, info=wanted, update_mask=mask)
        info: snapshots_pb2.Info = self._stub.Update(request, _TIMEOUT, self._meta).info
        return info

    def list(self, *filters: str) -> Sequence[snapshots_pb2.Info]:
        request = snapshots_pb2.ListSnapshotsRequest(**self._named, filters=filters)
        return [info for answer in self._stub.List(request, _TIMEOUT, self._meta) for info in answer.info]

    def usage(self, key: str) -> tuple[int, int]:
        answer = self._stub.Usage(snapshots_pb2.UsageRequest(**self._named, key=key), _TIMEOUT, self._meta)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._stub.Cleanup(snapshots_pb2.CleanupRequest(**self._named), _TIMEOUT, self._meta)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


class Collector:
    """containerd's garbage collection, at its socket: deleting a lease in sync answers when one has run. Closes with its `with`."""

    _numbers = itertools.count()

    def __init__(self, socket: Path, namespace: str = "default") -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", [("grpc.max_reconnect_backoff_ms", 200)])
        self._meta = (("containerd-namespace", namespace),)

    def run(self) -> None:
        """One collection. A snapshotter is looked at if a snapshot of it was removed since the last one."""
        lease = _field(1, f"lab-{next(self._numbers)}".encode())
        self._ask("Create", lease)
        self._ask("Delete", lease + b"\x10\x01")  # sync, field 2

    def _ask(self, verb: str, request: bytes) -> None:
        ask = self._channel.unary_unary(f"/containerd.services.leases.v1.Leases/{verb}")
        ask(request, _TIMEOUT, self._meta)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()


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


def _field(number: int, text: bytes) -> bytes:
    """A protobuf field of text, shorter than 128 bytes."""
    return bytes((number << 3 | 2, len(text))) + text
