"""The bound on bytes a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from modelvold.fetch.bandwidth import Bandwidth

RATE = 1_000_000


def test_without_a_bound_nobody_waits() -> None:
    """Whatever comes."""
    free = Bandwidth(None)
    assert free.take(1 << 40, 0.0, is_demand=False) == 0.0
    assert free.piece(512 << 10) == 512 << 10


def test_a_demand_does_not_wait_for_what_prefetch_took() -> None:
    """But prefetch for what demands took."""
    bound = Bandwidth(RATE)
    assert bound.take(RATE, 0.0, is_demand=False) > 0.8
    assert bound.take(RATE // 20, 0.0, is_demand=True) == 0.0
    assert bound.take(1, 0.0, is_demand=False) > 0.9


def test_pieces_are_small_where_it_is_slow() -> None:
    """So that who waits for the line waits for little."""
    assert Bandwidth(RATE).piece(512 << 10) == RATE // 10
    assert Bandwidth(1000).piece(512 << 10) == 4096


@given(st.lists(st.tuples(st.integers(1, RATE // 10), st.booleans()), min_size=1, max_size=50))
def test_who_waits_as_told_stays_within_it(takes: list[tuple[int, bool]]) -> None:
    """One after the other, each waiting as told: never more than the rate and a burst."""
    bound, now, came = Bandwidth(RATE), 0.0, 0
    for count, is_demand in takes:
        came += count
        now += bound.take(count, now, is_demand=is_demand)
        if not is_demand:
            assert came <= RATE * (now + 0.1) + 1


def test_the_line_is_not_idle_for_long_after_demands() -> None:
    """What they have taken in a minute is not waited for in full."""
    bound = Bandwidth(RATE)
    for second in range(60):
        bound.take(RATE, float(second), is_demand=True)
        bound.take(RATE // 2, float(second), is_demand=False)
    assert bound.take(1, 60.0, is_demand=False) <= 10.0
