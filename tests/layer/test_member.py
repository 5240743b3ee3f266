from __future__ import annotations

import pytest
from modelvold.layer.extent import ContentOffset
from modelvold.layer.toc import Entry, Kind
from modelvold.oci.file_metadata import LATEST

from tests.layer.tars import GNU, member, pax
from tests.layer.walks import only, refused

SECOND = 1_000_000_000


def test_a_long_name_is_judged_whole() -> None:
    """Not by the piece of it in the header, which may end with a slash (CVE-2025-13462 in CPython)."""
    name = b"d" * 99 + b"/file"
    entry = only(member(b"L", name, b"L", magic=GNU), member(name[:100], kind=b"\0", magic=GNU))
    assert (entry.path, entry.kind) == (name.decode(), Kind.FILE)
    entry = only(pax(path=b"d/"), member(b"d", kind=b"\0"))
    assert (entry.path, entry.kind) == ("d", Kind.DIRECTORY)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (b"3", "a character device"),
        (b"4", "a block device"),
        (b"6", "a FIFO"),
        (b"S", "a sparse file"),
        (b"M", "from another tape"),
        (b"V", "a volume label"),
        (b"D", "incremental backup"),
        (b"X", "unknown type b'X'"),
        (b"\xff", "unknown type"),
    ],
)
def test_what_no_volume_holds(kind: bytes, what: str) -> None:
    refused(member(b"ok"), member(b"sub/thing", b"", kind), saying=f"member 'sub/thing' at byte 512: .*{what}")


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_regular_files(kind: bytes) -> None:
    assert only(member(b"a", b"12", kind)) == Entry("a", Kind.FILE, 0o644, 1000, 100, 7 * SECOND, 2, ContentOffset(512))
    assert only(member(b"a/", b"", kind)).kind is Kind.DIRECTORY
    refused(member(b"a/", b"1", kind), saying="'a/' names a folder")


@pytest.mark.parametrize(
    ("mode", "shown"),
    [(b"0000755\0", 0o755), (b"0104755\0", 0o755), (b"0007000\0", 0), (bytes(8), 0), (b"\xff" * 8, 0o777)],
)
def test_only_permission_bits_are_taken(mode: bytes, shown: int) -> None:
    assert only(member(mode=mode)).mode == shown


def test_owners() -> None:
    entry = only(member(uid=b"\x80\0\0\0\xff\xff\xff\xfe", gid=b"7777777\0"))
    assert (entry.uid, entry.gid) == (0xFFFFFFFE, 0o7777777)
    refused(member(uid=b"\x80\0\0\0\xff\xff\xff\xff"), saying="owner 4294967295 is impossible")
    refused(member(gid=b"\xff" * 8), saying="owner -1 is impossible")
    refused(pax(uid=b"4294967295"), member(), saying="owner 4294967295")
    refused(pax(uid=b"-1"), member(), saying="owner is b'-1'")


@pytest.mark.parametrize(
    ("field", "mtime"),
    [
        (b"14371573622\0", 0o14371573622 * SECOND),
        (b"\xff" * 12, 0),
        (b"\x80" + b"\xff" * 11, LATEST),
        (b"\x80" + bytes(6) + b"\x01\0\0\0\0", (1 << 32) * SECOND),
    ],
)
def test_times_are_held_within_bounds(field: bytes, mtime: int) -> None:
    assert only(member(mtime=field)).mtime == mtime


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"d", "d"), (b"d/", "d"), (b"d///", "d"), (b"d/.", "d"), (b"d/./", "d"), (b"./d/e/", "d/e"),
        (b".", ""), (b"./", ""), (b"./.", ""), (b"..", ""), (b"../", ""), (b"../../", ""), (b".//", ""),
    ],
)  # fmt: skip
def test_names_of_folders(name: bytes, path: str) -> None:
    entry = only(member(name, kind=b"5"))
    assert (entry.path, entry.kind) == (path, Kind.DIRECTORY)


@pytest.mark.parametrize(
    ("name", "saying"),
    [
        (b"/etc/passwd", "absolute"),
        (b"a/../b", "'..'"),
        (b"", "names nothing"),
        (b".", "names nothing"),
        (b"..//a", "absolute"),
        (b"a/b/", "names a folder"),
        (b"d" * 256, "component longer than 255"),
        (b"d/" * 300 + b"a", "256 folders deep"),
        (b"n" * 5000, "a path of 5000 bytes, more than 4095"),
        (b"d/" * 2047 + b"nn", "a path of 4096 bytes, more than 4095"),
        (b"../" * 300_000 + b"a", "a path of 900001 bytes"),
        (b"nul\0nul", "NUL"),
    ],
)
def test_names_that_are_refused(name: bytes, saying: str) -> None:
    refused(pax(path=name), member(name[:100], b"1"), saying=saying)
    refused(member(b"f"), pax(linkpath=name), member(b"l", kind=b"1", link=name[:100]), saying=saying)


@pytest.mark.parametrize("name", [b"/", b"/d/", b"//", b"a/../", b"../a/..", b"", b"..//"])
def test_names_of_folders_that_are_refused(name: bytes) -> None:
    if name == b"..//":
        assert only(member(name, kind=b"5")).path == ""
    else:
        refused(member(name, kind=b"5"), saying="path")


@pytest.mark.parametrize("target", [b"", b"/abs", b"../../up", b"x/", b"\xff"])
def test_a_symlinks_target_stays_as_it_is(target: bytes) -> None:
    assert only(member(kind=b"2", link=target)).link == target.decode("utf-8", "surrogateescape")
