from __future__ import annotations

import pytest
from modelvold.layer.extent import ContentOffset
from modelvold.layer.toc import Entry, Kind
from modelvold.oci.file_metadata import LATEST

from tests.layer.tars import END, header, member, pax, record, whole
from tests.layer.walks import only, refused

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    "keys",
    [
        {"GNU__sparse__major": b"1", "GNU__sparse__minor": b"0", "GNU__sparse__name": b"big"},
        {"GNU__sparse__map": b"0,1"},
        {"GNU__sparse__size": b"12"},
    ],
)
def test_sparse_files_of_pax_are_refused_by_name(keys: dict[str, bytes]) -> None:
    refused(pax(**keys), member(), saying="sparse")
    refused(pax(b"g", **keys), member(), saying="sparse")


def test_parts_of_a_file_are_refused() -> None:
    refused(pax(b"g", GNU__volume__offset=b"512", GNU__volume__size=b"1"), member(), saying="another tape")
    assert only(pax(b"g", GNU__volume__label=b"mine"), member()).path == "a"


@pytest.mark.parametrize(
    ("said", "mtime"),
    [
        (b"1350244992.023960108", 1350244992_023960108),
        (b"1350244992.0239601089999", 1350244992_023960108),
        (b"1350244992.5", 1350244992_500000000),
        (b"1350244992.", 1350244992 * SECOND),
        (b"1350244992", 1350244992 * SECOND),
        (b"0.000000001", 1),
        (b"-1.5", 0),
        (b"-0.000000001", 0),
        (b"99999999999999999999999", LATEST),
        (b"9" * 5000, LATEST),
        (b"0" * 5000 + b"1", SECOND),
        (b"-" + b"9" * 5000, 0),
        (b"", 7 * SECOND),
    ],
)
def test_times_of_pax_are_exact(said: bytes, mtime: int) -> None:
    assert only(pax(mtime=said), member()).mtime == mtime


@pytest.mark.parametrize(
    "said", [b"1e9", b"now", b".5", b"+1", b"1.-5", b"1.5.5", b"--1", b"-", b" 1", b"1_0", "١".encode()]
)
def test_times_that_are_none(said: bytes) -> None:
    refused(pax(mtime=said), member(), saying="which is none")


@pytest.mark.parametrize("said", [b"1e3", b"-1", b"+1", b"", b" 1", b"0x1", b"1_0", b"1" * 21])
def test_sizes_of_pax(said: bytes) -> None:
    if said:
        refused(pax(size=said), member(), saying="its size is b'")
    else:
        assert only(pax(size=said), member(b"a", b"123")).size == 3


def test_pax() -> None:
    values = {
        "path": b"d/\xff" + b"n" * 200,
        "uid": b"3000000000",
        "gid": b"5",
        "mtime": b"1.25",
        "size": b"600",
        "hdrcharset": b"BINARY",
        "SCHILY__xattr__user__x": b"a=b\nc\0d",
        "LIBARCHIVE__creationtime": b"1",
        "comment": b"",
        "uname": b"\xff",
    }
    archive = pax(**values) + header(b"x", 0, uid=bytes(8), prefix=b"p") + bytes(1024) + member(b"next", b"1") + END
    first, second = whole(archive).entries
    path = "d/\udcff" + "n" * 200
    assert first == Entry(path, Kind.FILE, 0o644, 3000000000, 5, 1_250_000_000, 600, ContentOffset(1536))
    assert (second.path, second.uid, second.mtime, second.size) == ("next", 1000, 7 * SECOND, 1)


def test_links_of_pax() -> None:
    assert only(pax(linkpath=b"t" * 4095), member(kind=b"2", link=b"short")).link == "t" * 4095
    refused(pax(linkpath=b"t" * 4096), member(kind=b"2"), saying="4096 bytes, more than 4095")
    assert only(pax(linkpath=b""), member(kind=b"2", link=b"short")).link == "short"


def test_the_last_record_of_a_keyword_counts() -> None:
    content = record(b"path", b"one") + record(b"path", b"two")
    assert only(member(b"P", content, b"x"), member(b"a")).path == "two"


def test_global_headers() -> None:
    world = pax(b"g", uid=b"1", gid=b"2", mtime=b"3.5", comment=b"0123456789abcdef", charset=b"UTF-8")
    archive = world + member(b"a") + pax(uid=b"9", mtime=b"") + member(b"b") + member(b"c")
    archive += pax(b"g", uid=b"", gid=b"7") + member(b"d")
    assert [(e.path, e.uid, e.gid, e.mtime) for e in whole(archive).entries] == [
        ("a", 1, 2, 3_500_000_000),
        ("b", 9, 2, 7 * SECOND),
        ("c", 1, 2, 3_500_000_000),
        ("d", 1000, 7, 3_500_000_000),
    ]
    assert whole(pax(b"g", comment=b"x")).entries == ()


@pytest.mark.parametrize("key", ["path", "linkpath", "size"])
def test_a_global_header_cannot_name_or_measure(key: str) -> None:
    refused(pax(b"g", **{key: b"1"}), member(), saying=f"gives all members one {key}")


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"9 path=ab",
        b"8 path=ab\n",
        b"10 path=ab\n",
        b"99 path=ab\n",
        b" path=ab\n",
        b"-9 path=ab\n",
        b"9  path=a\n"[:9] + b"\n\n",
        b"0 path=ab\n",
        b"5 =a\n",
        b"6 path\n",
        b"00000000000000000000000000000000009 path=ab\n",
        record(b"path", b"ab") + bytes(1),
        b"1" * 5000 + b" path=a\n",
    ],
)
def test_broken_records(content: bytes) -> None:
    refused(member(b"P", content, b"x"), member(), saying="extended header is broken")
