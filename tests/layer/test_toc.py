from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.errors import Malformed
from modelvold.layer import toc as room
from modelvold.layer.extent import ContentOffset
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc, decode, encode

names = st.binary(max_size=20).map(lambda name: name.decode("utf-8", "surrogateescape"))
numbers = st.integers(0, 1 << 62)
entries = st.builds(
    Entry, names, st.sampled_from(Kind), numbers, numbers, numbers, numbers, numbers, numbers.map(ContentOffset), names
)
TOC = Toc((Entry("a/b", size=5), Entry("", Kind.DIRECTORY), Entry("l", Kind.SYMLINK, link="\udcff")), 1024)


def document(value: object) -> bytes:
    return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(value))


@settings(deadline=None)
@given(st.lists(entries, max_size=8).map(tuple), numbers)
def test_a_toc_comes_back_as_it_was(of: tuple[Entry, ...], length: int) -> None:
    toc = Toc(of, length)
    assert decode(encode(toc)) == toc


def test_what_the_catalogs_of_the_first_version_hold_is_still_read() -> None:
    kept = (
        "28b52ffd20490d020054039301cd04009399c403612f62a466696c65cd01a40000000500c4"
        "0099c400a96469726563746f727900016ca773796d6c696e6b01ff0300390bc1bdd0619601"
    )
    assert decode(bytes.fromhex(kept)) == TOC


def test_equal_tocs_are_equal_documents_and_small() -> None:
    many = Toc(
        tuple(Entry(f"weights/{n:06}.bin", size=1, offset=ContentOffset(n * 1024)) for n in range(10_000)), 1 << 30
    )
    assert encode(many) == encode(decode(encode(many)))
    assert len(encode(many)) < 10_000 * 10


def test_a_name_that_stands_for_no_bytes_has_no_document() -> None:
    with pytest.raises(Malformed, match="no valid text"):
        encode(toc_of_raw("\ud800", 1, 0, 0))


ROW = [b"a", "file", 0o644, 0, 0, 0, 1, 0, b""]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"garbage",
        encode(TOC)[:-1],
        encode(TOC) + b"x",
        zstandard.ZstdCompressor().compress(b""),
        zstandard.ZstdCompressor().compress(b"\x91" * 100_000),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"\x93\x01\x00\x90"),
        document(None),
        document([2, 0, []]),
        document([1, 0]),
        document([1, 0, [], 0]),
        document([1, 0, [ROW[:-1]]]),
        document([1, 0, [[*ROW, 0]]]),
        document([1, 0, [["a", *ROW[1:]]]]),
        document([1, 0, [[b"a", "socket", *ROW[2:]]]]),
        document([1, 0, [[b"a", msgspec.Raw(b"\xa4\xff\xff\xff\xff"), *ROW[2:]]]]),
        document([1, 0, [[b"a", "file", -0.5, *ROW[3:]]]]),
    ],
)
def test_garbage_is_no_toc(garbage: bytes) -> None:
    with pytest.raises(Malformed, match="toc"):
        decode(garbage)
    assert decode(document([1, 0, [ROW]])) == Toc((Entry("a", size=1),), 0)


def test_a_document_that_claims_to_be_huge_costs_nothing() -> None:
    honest = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    assert zstandard.frame_content_size(bytes(honest)) == 1 << 20
    at = bytes(honest).index((1 << 20).to_bytes(4, "little"))
    honest[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(Malformed, match="4294967295 bytes"):
        decode(bytes(honest))
    # A million rows of sixteen bytes each are a small document and a large toc.
    with pytest.raises(Malformed, match="not a toc"):
        decode(document([1, 0, msgspec.Raw(b"\xdd" + (room.MOST_ENTRIES + 1).to_bytes(4, "big"))]))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_toc_or_malformed(garbage: bytes) -> None:
    for document in (garbage, zstandard.ZstdCompressor().compress(garbage)):
        with suppress(Malformed):
            decode(document)
