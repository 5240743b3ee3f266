"""Clients of services on a unix socket: the snapshotter's ten verbs, at our door or at containerd's; containerd's garbage collection.

Errors are grpc.RpcError. Each closes with its `with`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from modelvold.rpc.gen import mount_pb2, snapshots_pb2, snapshots_pb2_grpc

_TIMEOUT = 120.0
#: It is tried again at once when who listens there comes back; messages are as large as containerd's own.
_OPTIONS = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.max_receive_message_length", 16 << 20)]

Labels = Mapping[str, str]


class Client:
    """A connection to the socket, made when it is needed and whenever it was lost."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}", _OPTIONS)

    def close(self) -> None:
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Snapshots(Client):
    """The ten verbs, asked of `snapshotter` in `namespace`: of a containerd, or of a snapshotter itself, which looks at neither."""

    def __init__(self, socket: Path, snapshotter: str = "modelvold", namespace: str = "default") -> None:
        super().__init__(socket)
        self._stub = snapshots_pb2_grpc.SnapshotsStub(self.channel)  # type: ignore[no-untyped-call]
        self._named = {"snapshotter": snapshotter}
        self._meta = (("containerd-namespace", namespace),)

    def prepare(self, key: str, parent: str = "", labels: Labels | None = None) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(**self._named, key=key, parent=parent, labels=labels)
        return list(self._stub.Prepare(request, _TIMEOUT, self._meta).mounts)

    def view(self, key: str, parent: str = "", labels: Labels | None = None) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.ViewSnapshotRequest(**self._named, key=key, parent=parent, labels=labels)
        return list(self._stub.View(request, _TIMEOUT, self._meta).mounts)

    def mounts(self, key: str) -> Sequence[mount_pb2.Mount]:
        request = snapshots_pb2.MountsRequest(**self._named, key=key)
        return list(self._stub.Mounts(request, _TIMEOUT, self._meta).mounts)

    def commit(self, name: str, key: str, labels: Labels | None = None, parent: str = "") -> None:
        request = snapshots_pb2.CommitSnapshotRequest(**self._named, name=name, key=key, labels=labels, parent=parent)
        self._stub.Commit(request, _TIMEOUT, self._meta)

    def remove(self, key: str) -> None:
        self._stub.Remove(snapshots_pb2.RemoveSnapshotRequest(**self._named, key=key), _TIMEOUT, self._meta)

    def stat(self, key: str) -> snapshots_pb2.Info:
        request = snapshots_pb2.StatSnapshotRequest(**self._named, key=key)
        info: snapshots_pb2.Info = self._stub.Stat(request, _TIMEOUT, self._meta).info
        return info

    def update(self, info: snapshots_pb2.Info, *paths: str) -> snapshots_pb2.Info:
        mask = FieldMask(paths=paths) if paths else None
        request = snapshots_pb2.UpdateSnapshotRequest(**self._named, info=info, update_mask=mask)
        updated: snapshots_pb2.Info = self._stub.Update(request, _TIMEOUT, self._meta).info
        return updated

    def label(self, key: str, label: str, value: str) -> snapshots_pb2.Info:
        """Update, of one label."""
        return self.update(snapshots_pb2.Info(name=key, labels={label: value}), f"labels.{label}")

    def messages(self, *filters: str) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        """Of a List, as they come."""
        request = snapshots_pb2.ListSnapshotsRequest(**self._named, filters=filters)
        yield from self._stub.List(request, _TIMEOUT, self._meta)

    def walk(self, *filters: str) -> Iterator[snapshots_pb2.Info]:
        """As they come."""
        for message in self.messages(*filters):
            yield from message.info

    def list(self, *filters: str) -> Sequence[snapshots_pb2.Info]:
        return [*self.walk(*filters)]

    def usage(self, key: str) -> tuple[int, int]:
        """Bytes and inodes."""
        answer = self._stub.Usage(snapshots_pb2.UsageRequest(**self._named, key=key), _TIMEOUT, self._meta)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._stub.Cleanup(snapshots_pb2.CleanupRequest(**self._named), _TIMEOUT, self._meta)


class Collector(Client):
    """containerd's garbage collection: deleting a lease in sync answers when one has run."""

    _numbers = itertools.count()

    def run(self) -> None:
        """One collection. A snapshotter is looked at if a snapshot of it was removed since the last one."""
        lease = _field(1, f"lab-{next(self._numbers)}".encode())
        self._ask("Create", lease)
        self._ask("Delete", lease + b"\x10\x01")  # sync, field 2

    def _ask(self, verb: str, request: bytes) -> None:
        ask = self.channel.unary_unary(f"/containerd.services.leases.v1.Leases/{verb}")
        ask(request, _TIMEOUT, (("containerd-namespace", "default"),), wait_for_ready=True)


def _field(number: int, text: bytes) -> bytes:
    """A protobuf field of text, shorter than 128 bytes."""
    return bytes((number << 3 | 2, len(text))) + text
