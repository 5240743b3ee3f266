"""One header of a tar: 512 bytes → what they say.

Formats: v7, ustar and pax (POSIX.1-2017, `pax`, "ustar Interchange Format"), GNU (its manual, "Basic Tar Format"), star
(as in Go's `archive/tar` `format.go`). Strict where readers of tars differ: a number or a name on which two of them
could disagree is refused, because what one scans and another mounts must be the same files.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import NamedTuple
from zlib import adler32

#: name, mode, uid, gid, size, mtime, checksum, type, link, magic with version; prefix and star's trailer after the
#: user's and group's names and device numbers, which are of no use to a volume.
_FIELDS = Struct("100s8s8s8s12s12s8sc100s8s80x155s8x4s")
_CHECKSUM = slice(148, 156)
#: Types of headers that say something of others: pax for one member and for all, GNU's long name and long link.
SPECIAL = frozenset({b"x", b"g", b"L", b"K"})
#: GNU's magic is `ustar` and spaces; it keeps times where ustar has the prefix.
_USTAR = b"ustar\0"
_STAR = b"tar\0"
#: star keeps times behind the first 131 bytes.
_STAR_PREFIX = 131


class Unreadable(Exception):
    """What is no tar, or none that we mount. The message is the cause; the walker knows where."""


class Header(NamedTuple):
    """`name` and `link` are bytes without NUL; `size` in bytes; `mtime` in seconds since 1970, negative before; `type`
    one byte. Of a special header only name, size and type are read."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    link: bytes


def read_header(block: bytes) -> Header:
    """What a block of 512 bytes says. Raises Unreadable for a wrong checksum and for numbers that are none."""
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, prefix, trailer = _FIELDS.unpack(block)
    _check(block, checksum)
    name = name.partition(b"\0")[0]
    if kind in SPECIAL:
        return Header(name, 0, 0, 0, _number(size, "size"), 0, kind, b"")
    if prefix[0] and magic[:6] == _USTAR:
        name = (prefix[:_STAR_PREFIX] if trailer == _STAR else prefix).partition(b"\0")[0] + b"/" + name
    return Header(
        name,
        _repeated(mode, "mode"),
        _repeated(uid, "owner"),
        _repeated(gid, "owner"),
        _number(size, "size"),
        _number(mtime, "time"),
        kind,
        link.partition(b"\0")[0],
    )


def _check(block: bytes, field: bytes) -> None:
    """Raises Unreadable unless `field` is the sum of the block's bytes, its own taken for spaces; or, as tars of old
    Suns have it, the sum of the same bytes as signed numbers."""
    expected = _number(field, "checksum")
    if expected == _sum(block[:256]) + _sum(block[256:]) - _sum(field) + 8 * ord(" "):
        return
    others = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    if expected != sum(byte - ((byte & 0x80) << 1) for byte in others) + 8 * ord(" "):
        raise Unreadable("the header's checksum is wrong")


def _sum(piece: bytes) -> int:
    """The sum of at most 256 bytes. Adler-32's lower half is the sum modulo 65,521, ten times as fast as `sum`."""
    return adler32(piece, 0) & 0xFFFF


def _number(field: bytes, what: str) -> int:
    """Octal digits, spaces allowed around them, up to a NUL or the field's end; nothing at all is 0. With the first bit
    set: GNU's base-256, two's complement."""
    if field[0] & 0x80:
        return _base256(field)
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():
        digits = digits.partition(b"\0")[0].strip(b" ")
    try:
        # `int` alone would accept signs and underscores.
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    if field.strip(b" \0"):
        raise Unreadable(f"the {what} in its header is no number: {field!r}")
    return 0


def _base256(field: bytes) -> int:
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    return value - (1 << bits) if value >> (bits - 1) else value


#: Of fields that say the same in member after member: it is faster, and their numbers are one object in memory.
_repeated = lru_cache(maxsize=256)(_number)
