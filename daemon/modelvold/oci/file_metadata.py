"""What a packer says of a layer's file: mode, size, time (model-spec `docs/annotations.md`, `file.metadata+json`).

Never raises: some packers write this JSON by hand and without escaping, and a model whose times are unknown is still
that model. What contradicts the manifest is for the reader of the manifest to refuse.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

_KEYS = (
    "org.cncf.model.file.metadata+json",
    "org.cnai.model.file.metadata+json",
    "org.cncf.model.file.metadata",
    "org.cnai.model.file.metadata",
)
_DEFAULT_MODE = 0o644
#: The last time, in nanoseconds, that every file system and tool on the way can hold: the year 2116.
LATEST = 1 << 62
#: "Regular file": Go packers write 0, others tar's flag byte.
_REGULAR = frozenset({0, ord("0"), "0", ""})
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """`mode`: permission bits; `mtime`: nanoseconds since 1970, 0 where unknown; `size`: bytes, None where unsaid."""

    mode: int = _DEFAULT_MODE
    mtime: int = 0
    size: int | None = None
    is_regular: bool = True


def read_metadata(annotations: Mapping[str, str]) -> FileMetadata:
    """The metadata among a layer's `annotations`; defaults for whatever is absent or unreadable."""
    text = next((annotations[key] for key in _KEYS if annotations.get(key)), "{}")
    try:
        fields: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return FileMetadata()
    mode = _whole(fields.get("mode"))
    flag = fields.get("typeflag", 0)
    mtime = fields.get("mtime")
    return FileMetadata(
        mode=(mode or 0) & 0o777 or _DEFAULT_MODE,
        mtime=nanoseconds(mtime) if isinstance(mtime, str) else 0,
        size=_whole(fields.get("size")),
        is_regular=flag is None or (isinstance(flag, int | str) and flag in _REGULAR),
    )


def nanoseconds(text: str) -> int:
    """An RFC 3339 time in nanoseconds since 1970, held within [0, LATEST]; 0 when it is no such time."""
    form = _RFC3339.fullmatch(text)
    if form is None:
        return 0
    year, month, day, hour, minute, second = (int(part) for part in form.groups()[:6])
    fraction, sign, hours, minutes = form.groups()[6:]
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return 0
    seconds = timegm((year, month, day, hour, minute, second))
    if sign:
        east = int(hours) * 3600 + int(minutes) * 60
        seconds -= east if sign == "+" else -east
    return max(0, min(LATEST, seconds * 1_000_000_000 + int((fraction or "0")[:9].ljust(9, "0"))))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
