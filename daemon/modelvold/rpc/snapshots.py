"""`containerd.services.snapshots.v1.Snapshots`: words in, words out. An adapter without thoughts.

Which containerd, which namespace and which plugin asks is not looked at: its collector says none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from modelvold.rpc.codes import answering
from modelvold.rpc.gen import mount_pb2, snapshots_pb2
from modelvold.rpc.server import Door
from modelvold.snapshot.mounts import Mount
from modelvold.snapshot.record import Info, Kind
from modelvold.snapshot.snapshotter import Snapshotter

#: Bytes in one message of a List: each more costs some 0.06 ms (bench/RESULTS.md), and a client that sets nothing takes 4 MiB.
_MESSAGE = 1 << 20

_KINDS = {
    Kind.VIEW: snapshots_pb2.VIEW,
    Kind.ACTIVE: snapshots_pb2.ACTIVE,
    Kind.COMMITTED: snapshots_pb2.COMMITTED,
}


def snapshots_door(snapshotter: Snapshotter) -> Door:
    def add(server: grpc.Server) -> str:
        service, asked = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"], _Snapshots(snapshotter)
        handlers = {verb.name: _handler(verb, getattr(asked, verb.name)) for verb in service.methods}
        server.add_registered_method_handlers(service.full_name, handlers)
        return service.full_name

    return add


def _handler(verb: MethodDescriptor, answer: Callable[..., Any]) -> grpc.RpcMethodHandler:
    """As generated code makes it, but that a stream's messages come as they go over the wire."""
    asked, answered = GetMessageClass(verb.input_type), GetMessageClass(verb.output_type)
    if verb.server_streaming:
        return grpc.unary_stream_rpc_method_handler(answer, asked.FromString, bytes)
    return grpc.unary_unary_rpc_method_handler(answer, asked.FromString, answered.SerializeToString)


class _Snapshots:
    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter
        self._written = _Written()

    def Prepare(  # noqa: N802
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        with answering(context, "Prepare"):
            found = self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
            return snapshots_pb2.PrepareSnapshotResponse(mounts=_mounts(found))

    def View(  # noqa: N802
        self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        with answering(context, "View"):
            found = self._snapshotter.view(request.key, request.parent, dict(request.labels))
            return snapshots_pb2.ViewSnapshotResponse(mounts=_mounts(found))

    def Mounts(  # noqa: N802
        self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        with answering(context, "Mounts"):
            return snapshots_pb2.MountsResponse(mounts=_mounts(self._snapshotter.mounts(request.key)))

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:  # noqa: N802
        with answering(context, "Commit"):
            self._snapshotter.commit(request.name, request.key, request.parent, dict(request.labels))
            return Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:  # noqa: N802
        with answering(context, "Remove"):
            self._snapshotter.remove(request.key)
            return Empty()

    def Stat(  # noqa: N802
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        with answering(context, "Stat"):
            return snapshots_pb2.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key)))

    def Update(  # noqa: N802
        self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        with answering(context, "Update"):
            asked = request.info
            info = self._snapshotter.update(asked.name, dict(asked.labels), list(request.update_mask.paths))
            return snapshots_pb2.UpdateSnapshotResponse(info=_info(info))

    def List(  # noqa: N802
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """ListSnapshotsResponses."""
        with answering(context, "List"):
            found = self._snapshotter.list(list(request.filters))
            yield from _messages(self._written.of(found, are_all=not request.filters))

    def Usage(  # noqa: N802
        self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UsageResponse:
        with answering(context, "Usage"):
            usage = self._snapshotter.usage(request.key)
            return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, _request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext) -> Empty:  # noqa: N802
        with answering(context, "Cleanup"):
            self._snapshotter.cleanup()
            return Empty()


class _Written:
    """Snapshots as a List's answer has them on the wire, each written once as long as it stays as it is: a List of a thousand is
    mostly their writing."""

    def __init__(self) -> None:
        self._pieces: dict[str, tuple[Info, bytes]] = {}

    def of(self, found: Sequence[Info], *, are_all: bool) -> list[bytes]:
        """Each of `found` as an answer with nothing else in it; such answers, one behind another, are an answer with all of them.
        `are_all`: whether there are no others."""
        pieces, known = [], self._pieces
        for info in found:
            was, piece = known.get(info.name, (None, b""))
            if was is not info:
                piece = snapshots_pb2.ListSnapshotsResponse(info=[_info(info)]).SerializeToString()
                known[info.name] = info, piece
            pieces.append(piece)
        if are_all and len(known) > 2 * len(found):  # most are gone
            self._pieces = {info.name: (info, piece) for info, piece in zip(found, pieces, strict=True)}
        return pieces


def _messages(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """All of them, joined while they have room together."""
    message, size = list[bytes](), 0
    for piece in pieces:
        if message and size + len(piece) > _MESSAGE:
            yield b"".join(message)
            message, size = [], 0
        message.append(piece)
        size += len(piece)
    if message:
        yield b"".join(message)


def _mounts(found: Sequence[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in found]


def _info(info: Info) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created),
        updated_at=_timestamp(info.updated),
        labels=info.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
