from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.layer.extent import BLOCK, ContentOffset, Extent, padded
from modelvold.layer.tar import TarWalker
from modelvold.layer.window import next_window

from tests.layer.tars import END, header

KIB = 1 << 10
MIB = 1 << 20


def extent(start: int, end: int) -> Extent:
    return Extent(ContentOffset(start), ContentOffset(end))


def windows(files: int, size: int) -> list[Extent]:
    """What is asked for to walk a tar of so many files of one size, as the opener does."""
    step = BLOCK + padded(size)
    length = files * step + len(END)
    walker = TarWalker(length)
    asked: list[Extent] = []
    while wanted := walker.wanted:
        window = next_window(wanted, asked[-1] if asked else None, length)
        asked.append(window)
        for at in range(-(-window.start // step) * step, min(window.end, files * step), step):
            if at == (walker.wanted or wanted).start:
                walker.feed(ContentOffset(at), header(b"%d" % (at // step), size)[: window.end - at])
        if window.end == length:
            walker.feed(ContentOffset(length - len(END)), END)
    assert len(walker.toc().entries) == files
    return asked


def test_many_small_files_are_read_through_in_about_ten_requests() -> None:
    asked = windows(10_000, 4 * KIB)
    assert len(asked) == 8
    assert [window.length // KIB for window in asked[:4]] == [256, 512, 1024, 2048]
    assert sum(window.length for window in asked) < 10_000 * 5 * KIB


def test_many_empty_files_too() -> None:
    assert len(windows(10_000, 0)) == 5


def test_large_files_cost_one_small_request_each() -> None:
    asked = windows(100, 16 * MIB)
    assert len(asked) == 101
    assert {window.length for window in asked[:-1]} == {256 * KIB}
    assert asked[-1].length == len(END)


@pytest.mark.parametrize(
    ("wanted", "before", "expected"),
    [
        (extent(0, 512), None, extent(0, 256 * KIB)),
        (extent(0, 512), extent(0, 100), extent(0, 512)),
        (extent(256 * KIB, 256 * KIB + 512), extent(0, 256 * KIB), extent(256 * KIB, 768 * KIB)),
        (extent(512 * KIB, 512 * KIB + 512), extent(0, 256 * KIB), extent(256 * KIB, 768 * KIB)),
        (extent(255 * KIB, 257 * KIB), extent(0, 256 * KIB), extent(255 * KIB, 767 * KIB)),
        (extent(512 * KIB + 512, 513 * KIB), extent(0, 256 * KIB), extent(512 * KIB + 512, 768 * KIB + 512)),
        (extent(64 * MIB, 64 * MIB + 512), extent(0, 64 * MIB), extent(64 * MIB, 128 * MIB)),
        (extent(900 * MIB, 901 * MIB), None, extent(900 * MIB, 901 * MIB)),
    ],
)
def test_the_next_window(wanted: Extent, before: Extent | None, expected: Extent) -> None:
    assert next_window(wanted, before, 1 << 40) == expected


def test_no_window_reaches_beyond_the_content() -> None:
    assert next_window(extent(0, 512), None, 1024) == extent(0, 1024)
    assert next_window(extent(1024, 1536), extent(0, 256 * KIB), 1536) == extent(1024, 1536)


@settings(deadline=None)
@given(
    st.integers(0, 1 << 40), st.integers(1, MIB), st.integers(0, 1 << 40), st.integers(1, 64 * MIB), st.integers(0, MIB)
)
def test_a_window_is_what_is_wanted_or_more(start: int, needed: int, begun: int, size: int, more: int) -> None:
    length = start + needed + more
    window = next_window(extent(start, start + needed), extent(begun, begun + size), length)
    assert window.start in {start, begun + size}
    assert window.start <= start <= window.start + MIB
    assert start + needed <= window.end <= length
    assert window.length <= 64 * MIB + MIB
