"""Tars made by hand, and ways to feed them to a walker."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from modelvold.layer.extent import BLOCK, ContentOffset, padded
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Toc

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)
END = bytes(2 * BLOCK)

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")


def header(
    name: bytes = b"a",
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    link: bytes = b"",
    magic: bytes = USTAR,
    prefix: bytes = b"",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0001750\0",
    gid: bytes = b"0000144\0",
    mtime: bytes = b"00000000007\0",
    tail: bytes = b"",
) -> bytes:
    """One header with a right checksum. Numbers are given as they stand in it."""
    number = b"%011o\0" % size if isinstance(size, int) else size
    return summed(
        _FIELDS.pack(
            name, mode, uid, gid, number, mtime, b"", kind, link, magic, b"user", b"group", b"", b"", prefix, tail
        )
    )


def summed(block: bytes) -> bytes:
    """The header `block` with its checksum put right."""
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:])) + block[156:]


def member(name: bytes = b"a", content: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header and the bytes behind it, their last block filled."""
    return header(name, len(content), kind, **fields) + content.ljust(padded(len(content)), b"\0")


def record(keyword: bytes, value: bytes) -> bytes:
    """One record of a pax header."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(kind: bytes = b"x", **values: bytes) -> bytes:
    """An extended header; `__` in a keyword stands for a dot."""
    return member(b"PaxHeaders/a", b"".join(record(k.replace("__", ".").encode(), v) for k, v in values.items()), kind)


def whole(archive: bytes) -> Toc:
    """Walked in one piece."""
    walker = TarWalker(len(archive))
    walker.feed(ContentOffset(0), archive)
    return walker.toc()


def stepwise(archive: bytes) -> Toc:
    """Walked with exactly what is wanted, each time."""
    walker = TarWalker(len(archive))
    while wanted := walker.wanted:
        walker.feed(wanted.start, memoryview(archive)[wanted.start : wanted.end])
    return walker.toc()


def in_pieces(archive: bytes, sizes: Iterable[int]) -> Toc:
    """Walked in pieces of those sizes, in turn and again, each beginning at what is wanted or a little before; what is
    too short changes nothing."""
    walker = TarWalker(len(archive))
    turn = _again(sizes)
    while wanted := walker.wanted:
        start = max(wanted.start - next(turn) % 700, 0)
        size = next(turn)
        if start + size < wanted.end:
            walker.feed(ContentOffset(start), archive[start : start + size])
            assert walker.wanted == wanted
        end = max(start + size, wanted.end)
        walker.feed(ContentOffset(start), bytearray(archive[start:end]))
        assert walker.wanted != wanted
    return walker.toc()


def streamed(length: int, block_at: Callable[[int], bytes]) -> TarWalker:
    """The walker of an archive of which each block is made when it is wanted. Feeds until it ends or raises."""
    walker = TarWalker(length)
    while wanted := walker.wanted:
        walker.feed(wanted.start, block_at(wanted.start))
    return walker


def _again(sizes: Iterable[int]) -> Iterator[int]:
    kept = list(sizes) or [1]
    while True:
        yield from kept
