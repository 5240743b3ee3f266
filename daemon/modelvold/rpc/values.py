"""Values to messages of `modelvold.control.v1` and back. Their fields have the same names."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, TypeVar

from modelvold.lending.report import VolumeReport, WaitingRead
from modelvold.rpc.gen import control_pb2

_T = TypeVar("_T")


def plain(value: Any) -> dict[str, Any]:
    """A value's fields as protobuf takes them; a name that is not Unicode (of a thread, a folder) loses what is not."""
    found: dict[str, Any] = _unicode(asdict(value))
    return found


def value(kind: type[_T], message: Any, **others: Any) -> _T:
    """The message as a `kind`, but for the `others`, which are given as they are to be."""
    names = [field.name for field in fields(kind) if field.name not in others]  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names}, **others)


def volume(message: control_pb2.Volume) -> VolumeReport:
    return value(
        VolumeReport,
        message,
        waiting=tuple(value(WaitingRead, read) for read in message.waiting),
        consumers=tuple(message.consumers),
        poisoned=tuple(message.poisoned),
        stranded=tuple(message.stranded),
    )


def _unicode(part: Any) -> Any:
    if isinstance(part, str):
        return part.encode(errors="replace").decode()
    if isinstance(part, dict):
        return {key: _unicode(inner) for key, inner in part.items()}
    if isinstance(part, tuple | list):
        return [_unicode(inner) for inner in part]
    return part
