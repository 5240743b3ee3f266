from __future__ import annotations

import pytest
from modelvold.errors import Exhausted, Malformed
from modelvold.layer import tar as room
from modelvold.layer.extent import BLOCK, ContentOffset, Extent
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Entry, Kind, Toc

from tests.layer.tars import END, GNU, header, member, pax, record, stepwise, streamed, whole
from tests.layer.walks import only, refused

SECOND = 1_000_000_000


def test_a_file() -> None:
    archive = member(b"dir/model.bin", b"x" * 513) + END
    entry = Entry("dir/model.bin", Kind.FILE, 0o644, 1000, 100, 7 * SECOND, 513, ContentOffset(512))
    assert whole(archive) == Toc((entry,), len(archive))


def test_what_is_wanted() -> None:
    archive = pax(path=b"n/" * 100 + b"n" * 200) + member(b"short", b"x" * 5000) + END
    walker = TarWalker(len(archive))
    seen = []
    while wanted := walker.wanted:
        seen.append((wanted.start, wanted.end))
        walker.feed(wanted.start, archive[wanted.start : wanted.end])
    # The extended header, its content, the member behind it, and behind that one's bytes the end.
    assert seen == [(0, 512), (512, 1024), (1024, 1536), (6656, 7168), (7168, 7680)]
    assert walker.toc().entries[0].path == "n/" * 100 + "n" * 200


def test_a_walker_that_is_not_at_its_end_has_no_toc_and_wants_all_its_bytes() -> None:
    walker = TarWalker(4096)
    with pytest.raises(ValueError, match="goes on at 0"):
        walker.toc()
    with pytest.raises(ValueError, match="fed from 512 on, wanted from 0 on"):
        walker.feed(ContentOffset(512), bytes(512))
    assert walker.wanted == Extent(ContentOffset(0), ContentOffset(512))


@pytest.mark.parametrize(
    ("ending", "entries"),
    [
        (b"", 1),
        (bytes(512), 1),
        (bytes(1024), 1),
        (bytes(10240), 1),
        (bytes(1024) + b"anything, of any length", 1),
        (bytes(1024) + member(b"b"), 1),
        (member(b"b") + bytes(512), 2),
    ],
)
def test_ends(ending: bytes, entries: int) -> None:
    assert len(whole(member() + ending).entries) == entries


def test_an_archive_of_nothing() -> None:
    for archive in (b"", bytes(512), bytes(1024), bytes(10240)):
        assert whole(archive) == Toc((), len(archive))


def test_a_lone_block_of_zeros_is_no_end() -> None:
    refused(member(), bytes(512), member(b"b"), saying="'b' at byte 1024: it follows a lone block of zeros")
    with pytest.raises(Malformed, match="ends inside a header"):
        whole(member() + bytes(512) + b"b")


def test_links_and_folders_have_no_bytes_whatever_their_size() -> None:
    archive = member(b"f", b"1") + header(b"d/", 512, b"5") + header(b"s", 512, b"2", link=b"../x") + member(b"g", b"2")
    archive += header(b"h", 1 << 30, b"1", link=b"f")
    entries = whole(archive).entries
    assert [(e.path, e.kind, e.size, e.offset, e.link) for e in entries] == [
        ("f", Kind.FILE, 1, 512, ""),
        ("d", Kind.DIRECTORY, 0, 0, ""),
        ("s", Kind.SYMLINK, 0, 0, "../x"),
        ("g", Kind.FILE, 1, 2560, ""),
        ("h", Kind.HARDLINK, 0, 0, "f"),
    ]


def test_the_last_block_of_a_file_must_be_whole() -> None:
    with pytest.raises(Malformed, match="'a' at byte 0: the tar ends at 1022, inside the last block of its 510 bytes"):
        whole(member(b"a", b"x" * 510)[:-2])


def test_gnu_long_names() -> None:
    name, link = b"long/" + b"n" * 200, b"l" * 3000
    parts = [
        member(b"././@LongLink", link + b"\0", b"K", magic=GNU),
        member(b"././@LongLink", name + b"\0", b"L", magic=GNU),
    ]
    for order in (parts, parts[::-1]):
        entry = only(*order, member(b"short", kind=b"2", link=b"other", magic=GNU, prefix=b"p"))
        assert (entry.path, entry.link) == (name.decode(), link.decode())
    # Nothing of it is left for the next one, and a name without its NUL is one too.
    entries = whole(member(b"L", name, b"L") + member(b"a") + member(b"b")).entries
    assert [entry.path for entry in entries] == [name.decode(), "b"]
    assert only(member(b"L", b"", b"L"), member(b"b")).path == "b"


@pytest.mark.parametrize(
    ("parts", "saying"),
    [
        ([pax(uid=b"1"), pax(gid=b"1"), member()], "where a member should follow"),
        ([member(b"L", b"x", b"L"), member(b"L", b"y", b"L"), member()], "where a member should follow"),
        ([pax(path=b"x"), member(b"L", b"y", b"L"), member()], "two extended headers each say its path"),
        (
            [member(b"K", b"x", b"K"), pax(linkpath=b"x"), member(kind=b"2")],
            "two extended headers each say its linkpath",
        ),
        ([pax(uid=b"1"), pax(b"g", uid=b"2"), member()], "where a member should follow"),
        ([pax(uid=b"1")], "between an extended header and its member"),
        ([member(b"L", b"x", b"L")], "between an extended header and its member"),
        ([header(b"P", (1 << 20) + 1, b"x")], "1048577 bytes, more than 1048576"),
        ([header(b"P", b"\xff" * 12, b"x")], "a size of -1 bytes"),
        ([header(b"P", 4096, b"g")], "beyond the tar's"),
    ],
)
def test_extended_headers_out_of_place(parts: list[bytes], saying: str) -> None:
    refused(*parts, saying=saying)


def test_an_extended_header_at_the_very_end() -> None:
    with pytest.raises(Malformed, match="between an extended header and its member"):
        whole(pax(uid=b"1"))


def test_an_extended_header_of_a_mebibyte_is_read() -> None:
    archive = member(b"P", record(b"comment", b"c" * ((1 << 20) - 17)), b"x") + member(b"a") + END
    assert [entry.path for entry in stepwise(archive).entries] == ["a"]


def test_hard_links_name_the_file() -> None:
    archive = (
        member(b"./d/f", b"x") + member(b"l", kind=b"1", link=b"d//f") + member(b"m", kind=b"1", link=b"./l") + END
    )
    assert [(e.path, e.kind, e.link) for e in whole(archive).entries] == [
        ("d/f", Kind.FILE, ""),
        ("l", Kind.HARDLINK, "d/f"),
        ("m", Kind.HARDLINK, "d/f"),
    ]


@pytest.mark.parametrize(
    ("parts", "saying"),
    [
        ([member(b"l", kind=b"1", link=b"l")], "'l' at byte 0: a hard link to 'l', which is no file before it"),
        ([member(b"a", kind=b"1", link=b"b"), member(b"b", kind=b"1", link=b"a")], "hard link to 'b'"),
        ([member(b"a", kind=b"1", link=b"b"), member(b"b")], "hard link to 'b'"),
        ([member(b"d", kind=b"5"), member(b"l", kind=b"1", link=b"d")], "hard link to 'd'"),
        ([member(b"s", kind=b"2", link=b"x"), member(b"l", kind=b"1", link=b"s")], "hard link to 's'"),
        ([member(b"f"), member(b"l", kind=b"1", link=b"/f")], "absolute"),
        ([member(b"f"), member(b"l", kind=b"1", link=b"")], "names nothing"),
    ],
)
def test_hard_links_to_anything_else(parts: list[bytes], saying: str) -> None:
    refused(*parts, saying=saying)


def test_ten_million_entries_are_given_up_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_ENTRIES", 5_000)
    block, taken = header(b"a"), []

    def block_at(at: int) -> bytes:
        taken.append(at)
        return block

    with pytest.raises(Exhausted, match="more than 5000 files and folders"):
        streamed(10_000_000 * BLOCK, block_at)
    assert len(taken) == 5_001


def test_endless_global_headers_are_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_ENTRIES", 5_000)
    block = header(b"g", 0, b"g")
    with pytest.raises(Exhausted, match="more than 5000"):
        streamed(1 << 50, lambda _: block)


def test_long_names_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that a short hard link stands for."""
    monkeypatch.setattr(room, "MOST_TEXT", 100_000)
    long = member(b"L", b"/".join([b"n" * 250] * 16), b"L", magic=GNU) + member(b"f", magic=GNU)
    links = (member(b"%d" % n, kind=b"1", link=b"0" if n else b"") for n in range(10_000))
    first = member(b"L", b"/".join([b"n" * 250] * 16), b"K", magic=GNU) + next(links)
    walker = TarWalker(1 << 30)
    walker.feed(ContentOffset(0), long + first)
    at, some = len(long + first), [next(links) for _ in range(30)]
    with pytest.raises(Exhausted, match="longer than 0 MiB together"):
        walker.feed(ContentOffset(at), b"".join(some))
