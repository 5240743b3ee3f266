"""Bars of every width and state: they fit, they do not jump, they say what is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.cli import bars
from modelvold.cli.bars import Pulled
from modelvold.lending.report import Progress

_GIB = 1 << 30
_STEP = Progress("h/m:v1", 4 * _GIB, _GIB, _GIB, _GIB // 2, 1.25 * _GIB, done=False, eta=2.4)
_SIZES = st.integers(0, 1 << 50)


@st.composite
def steps(draw: st.DrawFn) -> Progress:
    size = draw(_SIZES)
    present = draw(st.integers(0, size))
    verified = draw(st.integers(0, present))
    rate, eta = draw(st.floats(0, 1e12)), draw(st.floats(-1, 1e7))
    return Progress("h/m:v1", size, present, verified, verified, rate, done=False, eta=eta)


@given(steps(), st.text(max_size=200), st.integers(1, 200))
def test_no_line_is_wider_than_the_terminal(step: Progress, reference: str, width: int) -> None:
    for first in (bars.head(reference, step, width), bars.head(reference, None, width)):
        assert len(first) <= width
        assert first.isprintable()
    done, left, said = bars.bar(step, width)
    assert min(done, left) >= 0
    assert done + left >= 1
    assert 2 + done + left + len(said) <= max(width, 3)


@given(steps(), steps(), st.integers(20, 200))
def test_nothing_moves_while_it_changes(one: Progress, other: Progress, width: int) -> None:
    other = replace(other, size=one.size, present=min(other.present, one.size), verified=0)
    (done, left, said), (done_too, left_too, said_too) = bars.bar(one, width), bars.bar(other, width)
    assert (done + left, len(said)) == (done_too + left_too, len(said_too))
    assert (done <= done_too) or one.present >= other.present


def test_what_is_said() -> None:
    assert bars.head("h/m:v1", _STEP, 40) == "h/m:v1                        2.4 s left"
    assert bars.head("h/m:v1", replace(_STEP, eta=-1.0), 40).endswith("? left")
    assert bars.head("h/m:v1", replace(_STEP, present=_STEP.size), 40).endswith("checking")
    done, left, said = bars.bar(_STEP, 79)
    assert said == "  1.00 GiB of 4.00 GiB  1.25 GiB/s   12 % verified"
    assert (done, left) == (6, 21)
    assert bars.bar(replace(_STEP, rate=0.0), 79)[2] == "  1.00 GiB of 4.00 GiB           -   12 % verified"
    assert bars.bar(_STEP, 39)[2] == "  1.00 GiB of 4.00 GiB"


@pytest.mark.parametrize(
    ("pulled", "said"),
    [
        (Pulled("h/m", 4 * _GIB, 4 * _GIB, 3.2), "pulled h/m: 4.00 GiB in 3.2 s (1.25 GiB/s), verified"),
        (Pulled("h/m", 4 * _GIB, _GIB, 0.8), "pulled h/m: 1.00 GiB of 4.00 GiB in 0.8 s (1.25 GiB/s), verified"),
        (Pulled("h/m", 4 * _GIB, 0, 0.01), "pulled h/m: 4.00 GiB already here, verified"),
        (Pulled("h/m", 0, 0, 0.01), "pulled h/m: 0 B already here, verified"),
        (Pulled("h/m", 10, 10, 0.0), "pulled h/m: 10 B in 0.0 s (-), verified"),
    ],
)
def test_what_became_of_it(pulled: Pulled, said: str) -> None:
    assert bars.outcome(pulled) == said
    assert len(bars.outcome(replace(pulled, reference="h/" + "m" * 200), 80)) <= 80
