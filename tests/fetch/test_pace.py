"""The number in flight, against hosts that give so much for each connection, or so much in all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from modelvold.fetch.pace import Pace

MOST = 16
_LOOKS = 20  # a second


def _run(pace: Pace, rate_of: Callable[[int], float], seconds: float, start: float = 0.0) -> list[int]:
    """The limits over time, all connections in use."""
    came, limits = 0.0, []
    for look in range(int(seconds * _LOOKS)):
        came += rate_of(pace.limit) / _LOOKS
        pace.tick(start + look / _LOOKS, int(came), pace.limit)
        limits.append(pace.limit)
    return limits


def test_a_host_that_gives_so_much_for_each_connection_keeps_all_of_them() -> None:
    """60 MB/s each: a glance shows that they are slow, a try at somewhat fewer that each counts."""
    limits = _run(Pace(MOST), lambda n: 60e6 * n, 60)
    assert limits[4] == MOST
    assert min(limits[4:]) == MOST * 3 // 4
    assert sum(limits) / len(limits) > 0.98 * MOST


def test_a_fast_host_is_not_asked_by_many() -> None:
    """A few have all that the line, or the machine, has."""
    limits = _run(Pace(MOST), lambda n: min(400e6 * n, 1100e6), 60)
    assert max(limits[: 2 * _LOOKS]) <= 3
    assert max(limits) <= 6


def test_a_host_that_answers_late_is_asked_by_many() -> None:
    """What is asked for is small, or far away: it is time that each takes, and not bytes."""
    limits = _run(Pace(MOST), lambda _: 0.0, 1)
    assert limits[4] == MOST


def test_which_of_the_two_it_is_shows() -> None:
    """So that nobody holds still for a demand where that is of no use."""
    bounded, full = Pace(MOST), Pace(MOST)
    _run(bounded, lambda n: 60e6 * n, 2)
    _run(full, lambda n: min(50e6 * n, 125e6), 20)
    assert bounded.each_counts
    assert not full.each_counts


def test_where_the_cores_are_busy_some_of_the_rate_is_given() -> None:
    """A twentieth less for each step is no reason to keep them from digests; elsewhere it is."""

    def limit(*, is_busy: bool) -> int:
        pace, came = Pace(MOST), 0.0
        for look in range(3 * _LOOKS):
            came += 0.3e9 * (1 - 0.8 / pace.limit) / _LOOKS
            pace.tick(look / _LOOKS, int(came), pace.limit, is_busy=is_busy)
        return pace.limit

    assert limit(is_busy=True) <= 3 < limit(is_busy=False)


def test_a_full_line_gets_few() -> None:
    """Fewer bring as much: two are left within seconds, and more are tried now and then."""
    limits = _run(Pace(MOST), lambda n: min(120e6 * n, 125e6), 60)
    assert limits[2 * _LOOKS] == 2
    assert sum(limits[2 * _LOOKS :]) / len(limits[2 * _LOOKS :]) < 2.5


def test_a_line_that_two_and_a_half_connections_fill_keeps_three() -> None:
    """It is not starved by tries at fewer."""
    limits = _run(Pace(MOST), lambda n: min(50e6 * n, 125e6), 300)
    late = limits[10 * _LOOKS :]
    assert sum(n >= 3 for n in late) > 0.95 * len(late)
    assert max(late) <= 6


def test_one_that_fills_the_line_alone_shows_that_few_are_enough() -> None:
    """While everything made way for it."""
    pace = Pace(MOST)
    _run(pace, lambda n: min(50e6 * n, 55e6), 0.25)
    assert pace.limit == MOST
    pace.find_full(0.3)
    assert pace.limit == 3


def test_what_is_not_in_full_use_says_nothing() -> None:
    """Three requests where sixteen might be: nothing is learnt."""
    pace = Pace(MOST)
    for look in range(100):
        pace.tick(look / _LOOKS, look * 1000, 3)
    assert pace.limit == MOST
    for look in range(100):
        pace.tick(5 + look / _LOOKS, 100_000, 0)
    assert pace.limit == MOST


def test_a_line_that_has_become_faster_is_found_out() -> None:
    """Within some tens of seconds."""
    pace = Pace(MOST)
    _run(pace, lambda n: min(50e6 * n, 100e6), 5)
    assert pace.limit == 2
    limits = _run(pace, lambda n: 50e6 * n, 60, start=5.0)
    assert limits[-1] > MOST // 2


def test_a_host_that_refuses_is_asked_half_as_much() -> None:
    """What is refused together counts once, and it is a while before more is tried."""
    pace = Pace(MOST)
    _run(pace, lambda n: 60e6 * n, 0.25)
    for _ in range(5):
        pace.refuse(10.0)
    assert pace.limit == MOST // 2
    assert set(_run(pace, lambda n: 60e6 * n, 4.0, start=10.1)) == {MOST // 2}
    for moment in (20.0, 30.0, 40.0, 50.0):
        pace.refuse(moment)
    assert pace.limit == 1


def test_it_comes_back_after_that() -> None:
    """A host that is well again has all of them within seconds, not one more every few."""
    pace = Pace(MOST)
    for moment in (0.0, 2.0, 4.0, 6.0):
        pace.refuse(moment)
    assert pace.limit == 1
    assert _run(pace, lambda n: 60e6 * n, 8.0, start=6.0)[-1] == MOST


@pytest.mark.parametrize("most", [1, 2, 3, 64])
def test_it_stays_between_one_and_the_most(most: int) -> None:
    """Whatever comes."""
    pace = Pace(most)
    limits = _run(pace, lambda n: 1e6 * ((n * 7919) % 13), 60)
    assert min(limits) >= 1
    assert max(limits) <= most
