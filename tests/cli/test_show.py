"""Single values as a person sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.cli import show
from modelvold.lending.report import Checked, Collected, Progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "-"), (0.25, "0.2 s"), (12.9, "12 s"), (75, "1 min 15 s"), (11000, "3 h 3 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "100 %"), (999_999, 1_000_000, "99 %"), (1, 1, "100 %"), (0, 5, "0 %")]
)
def test_a_hundred_percent_is_all_of_it(part: int, whole: int, text: str) -> None:
    assert show.share(part, whole) == text


def test_a_step() -> None:
    progress = Progress("host/m:v1", 2 << 30, 1 << 30, 1 << 29, 0, 3 << 20, done=False)
    assert show.step(progress) == "host/m:v1: 50 % present, 25 % durable, 0 % verified of 2.00 GiB, 3.00 MiB/s"
    assert show.step(replace(progress, done=True)).endswith("done")


def test_a_check() -> None:
    checked = Checked("host/m:v1", 2 << 30, 1 << 30, 0, 0, 3 << 20, done=False)
    assert show.check(checked) == "host/m:v1: 50 % of 2.00 GiB read, nothing wrong, 3.00 MiB/s"
    assert show.check(replace(checked, reference="", wrong=1)).startswith("all models: ")
    found = replace(checked, wrong=2, repaired=1, read=2 << 30, done=True)
    assert show.check(found) == "host/m:v1: 100 % of 2.00 GiB read, 2 segments wrong, 1 repaired, done"


def test_what_is_forgotten() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    assert show.collected(Collected("host/m:v1", digest, 15 << 30)) == "15.0 GiB  host/m:v1 (sha256:0123456789ab)"


@given(st.text(), st.integers(80, 200))
def test_lines_are_as_wide_as_they_may_be_and_act_on_nothing(text: str, width: int) -> None:
    lines = show.wrapped(text, width, first="  word: ", rest="    ")
    assert all(len(line) <= width and line.isprintable() for line in lines)
    assert show.one_line(text).isprintable()
    (line,) = show.wrapped(text, None, first="  word: ")
    assert line == "  word: " + show.one_line(text)
