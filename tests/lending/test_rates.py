"""How fast a pull is and how long it still takes: what a person believes."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from modelvold.lending.rates import Course

_GAINS = st.lists(st.tuples(st.floats(0.01, 3), st.integers(0, 1 << 30)), min_size=1, max_size=60)


@given(st.integers(10_000, 1 << 34), st.floats(0.02, 2), st.integers(2, 100))
def test_an_even_pace_is_told_as_it_is(rate: int, period: float, looks: int) -> None:
    course, size = Course(), round(rate * period * 200)
    for look in range(looks):
        now = look * period
        found, eta = course.note(1000 + now, round(rate * now), size)
        if now > 0.6:
            assert math.isclose(found, rate, rel_tol=0.01)
            assert math.isclose(eta, (size - rate * now) / rate, rel_tol=0.02)


@given(_GAINS)
def test_the_time_left_never_jumps(gains: list[tuple[float, int]]) -> None:
    """It counts down, and goes towards what the last seconds say by no more than the time that passed lets it."""
    course, size = Course(), sum(gain for _, gain in gains)
    now, present, before = 0.0, 0, -1.0
    for passed, gain in gains:
        now, present = now + passed, present + gain
        rate, eta = course.note(now, present, size)
        assert rate >= 0
        assert (eta == 0) if present == size else (eta > 0 if rate > 0 else eta == -1)
        if before >= 0 and eta > 0:
            expected, found = max(0.0, before - passed), (size - present) / rate
            assert min(expected, found) * 0.999 <= eta <= max(expected, found) * 1.001
            assert abs(eta - expected) <= abs(found - expected) * passed / 3 * 1.001 + 1e-6 * expected
        before = eta


@given(_GAINS)
def test_silence_is_unknown(gains: list[tuple[float, int]]) -> None:
    course, present, now = Course(), 0, 0.0
    for passed, gain in gains:
        now, present = now + passed, present + gain
        course.note(now, present, 1 << 60)
    for _ in range(30):
        now += 0.25
        told = course.note(now, present, 1 << 60)
    assert told == (0.0, -1.0)


def test_what_was_taken_back_is_no_gain_when_it_comes_again() -> None:
    course = Course()
    for look in range(20):
        course.note(look * 0.25, look * 100, 10_000)
    assert course.note(5.0, 0, 10_000) == (0.0, -1.0)
    rate, eta = course.note(6.0, 400, 10_000)
    assert (rate, eta) == (400.0, 24.0)


def test_nothing_to_do_takes_no_time() -> None:
    assert Course().note(0.0, 0, 0) == (0.0, 0.0)
