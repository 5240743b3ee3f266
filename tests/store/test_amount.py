"""Amounts of bytes and of time, as settings say them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelvold.store.amount import Amount, duration, size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0 B", 0),
        ("1B", 1),
        ("1kB", 1000),
        ("1 KB", 1000),
        ("1 KiB", 1024),
        ("3MB", 3_000_000),
        ("3 MiB", 3 << 20),
        ("200 GiB", 200 << 30),
        ("200GB", 200 * 10**9),
        ("1.5 TiB", 3 << 39),
        ("0.1 TB", 10**11),
        ("1.9 B", 1),
    ],
)
def test_so_many_bytes(text: str, count: int) -> None:
    assert Amount.parse(text) == Amount(bytes=count)
    assert Amount.parse(text).of(1 << 40) == count


@pytest.mark.parametrize(
    ("text", "of_a_thousand"), [("0%", 0), ("10%", 100), ("12.5 %", 125), ("100%", 1000), ("0.0001%", 1)]
)
def test_a_share_of_a_whole(text: str, of_a_thousand: int) -> None:
    assert Amount.parse(text).of(1000) == of_a_thousand


def test_nothing_is_none() -> None:
    assert Amount.parse("") == Amount()
    assert Amount().of(1 << 40) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("200", "no unit: it is one of B, kB, KiB"),
        ("200 Gi", "'Gi' is not known"),
        ("200 gib", "'gib' is not known"),
        ("200  GiB", "not a number and a unit"),
        ("GiB", "not a number and a unit"),
        ("-1 GiB", "not a number and a unit"),
        ("1e3 GiB", "not a number and a unit"),
        ("1,5 GiB", "not a number and a unit"),
        ("١ GiB", "not a number and a unit"),
        ("1 GiB\n", "not a number and a unit"),
        ("9" * 19 + " B", "not a number and a unit"),
        ("all", "not a number and a unit"),
        ("100.1%", "more than all of it"),
        ("110 %", "more than all of it"),
    ],
)
def test_what_is_no_amount(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Amount.parse(text)


@given(st.integers(0, 1 << 60), st.floats(0, 1))
@example((1 << 60) - 1, 1.0)
def test_a_share_is_never_more_than_all_of_it_nor_none(total: int, share: float) -> None:
    found = Amount(share=share).of(total)
    assert 0 <= found <= total
    assert (found == 0) == (total == 0 or share == 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0.0), ("1.5s", 1.5), ("30m", 1800.0), ("12 h", 43200.0), ("7d", 604800.0), ("36500d", 36500 * 86400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds
    assert duration("") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("7", "not a number and one of s, m, h, d"),
        ("7 days", "not a number"),
        ("1d12h", "not a number"),
        ("-1d", "not a number"),
        ("36501d", "more than 36500d"),
    ],
)
def test_what_is_no_duration(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        duration(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1 << 20, "1.00 MiB"),
        (15 << 30, "15.0 GiB"),
        (700 << 30, "700 GiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
