from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import Malformed
from modelvold.layer.cut import cut, longest_segment
from modelvold.layer.extent import BLOCK, CHUNK, ContentOffset, Extent, padded
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc

MIB = 1 << 20
GIB = 1 << 30
EDGES = (0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 64 * MIB - 1, 64 * MIB)


def raw(size: int) -> Toc:
    return toc_of_raw("model", size, 0o644, 0)


def packed(sizes: list[int], gaps: list[int], tail: int = 0) -> Toc:
    """Files one after another, each behind a gap of whole blocks, as in a tar; `tail` bytes after the last one's
    padding.
    """
    entries, at = [], 0
    for number, (size, gap) in enumerate(zip(sizes, gaps, strict=True)):
        at += gap * BLOCK
        entries.append(Entry(f"f{number}", size=size, offset=ContentOffset(at)))
        at = padded(at + size)
    return Toc(tuple(entries), at + tail)


def lengths(toc: Toc) -> list[int]:
    return [segment.length for segment in cut(toc)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, [1]),
        (16 * MIB, [16 * MIB]),
        (16 * MIB + 1, [16 * MIB, 1]),
        (64 * MIB - 1, [16 * MIB] * 3 + [16 * MIB - 1]),
        (64 * MIB, [2 * MIB] + [16 * MIB] * 3 + [14 * MIB]),
        (GIB - 1, [2 * MIB] + [16 * MIB] * 63 + [14 * MIB - 1]),
        (GIB, [2 * MIB] + [32 * MIB] * 31 + [30 * MIB]),
    ],
)
def test_one_file(size: int, expected: list[int]) -> None:
    assert lengths(raw(size)) == expected


def test_small_files_share_a_segment() -> None:
    assert lengths(packed([1000] * 100, [1] * 100)) == [100 * (512 + 1024)]


def test_a_chunk_that_does_not_fit_goes_into_the_next_segment() -> None:
    toc = packed([15 * MIB + 700 * 1024, MIB], [0, 0])
    assert lengths(toc) == [15 * MIB + 700 * 1024, MIB]


def test_a_segment_may_end_where_the_last_chunk_of_a_file_does() -> None:
    toc = packed([16 * MIB - 100, 1], [0, 0])
    assert cut(toc)[0] == Extent(ContentOffset(0), ContentOffset(16 * MIB))


def test_a_large_file_begins_a_segment_of_two_mebibytes() -> None:
    toc = packed([100, 64 * MIB, 100], [1, 1, 1])
    starts = [segment.start for segment in cut(toc)]
    large = toc.entries[1].offset
    assert large in starts
    assert large + 2 * MIB in starts


def test_directories_and_links_hold_no_bytes() -> None:
    entries = (Entry("d", Kind.DIRECTORY), Entry("d/l", Kind.SYMLINK, link="x"), Entry("d/f", size=5))
    assert lengths(Toc(entries, 5)) == [5]


@pytest.mark.parametrize(
    "entries",
    [
        (Entry("off-a-block", size=1, offset=ContentOffset(1)),),
        (Entry("too-far", size=1025),),
        (Entry("negative", size=-1),),
        (Entry("one", size=513), Entry("two", size=1, offset=ContentOffset(512))),
    ],
)
def test_bytes_where_none_can_be_are_refused(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(Malformed, match="repack"):
        cut(Toc(entries, 1024))


@given(
    st.lists(st.tuples(st.one_of(st.sampled_from(EDGES), st.integers(0, 40 * MIB)), st.integers(0, 3)), max_size=8),
    st.integers(0, 40 * MIB),
)
def test_the_segments_are_those_of_the_rules_taken_one_block_at_a_time(files: list[tuple[int, int]], tail: int) -> None:
    toc = packed([size for size, _ in files], [gap for _, gap in files], tail)
    assert [(segment.start, segment.end) for segment in cut(toc)] == list(pairwise(slow_bounds(toc)))


def slow_bounds(toc: Toc) -> list[int]:
    """The rules of the module's head, tried block by block."""
    large = [entry.offset for entry in toc.entries if entry.size >= 64 * MIB]
    forced = {*large, *(offset + 2 * MIB for offset in large)}
    bounds = [0]
    while bounds[-1] < toc.length:
        start = bounds[-1]
        end = min([start + longest_segment(toc.length), toc.length, *(bound for bound in forced if bound > start)])
        while end < toc.length and any(inside_a_chunk(entry, end) for entry in toc.entries):
            end -= BLOCK
        bounds.append(end)
    return bounds


def inside_a_chunk(entry: Entry, bound: int) -> bool:
    reached = bound - entry.offset
    return 0 < reached < entry.size and reached % CHUNK != 0


def test_seven_hundred_gigabytes_fit_a_mount() -> None:
    segments = cut(raw(700 * GIB))
    assert len(segments) == 1 + -(-(700 * GIB - 2 * MIB) // (32 * MIB))
    assert segments[-1].end == 700 * GIB
