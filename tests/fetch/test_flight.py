"""Transfers that are left behind by others."""

from __future__ import annotations

from modelvold.fetch.flight import Flight, stragglers
from modelvold.fetch.plan import Assignment

MIB = 1 << 20
SIZE = 64 * MIB


class _Body:
    host = "registry.example"

    def abort(self) -> None:
        """Nobody reads it."""


def _flight(number: int, rate: float, seconds: float = 4.0, host: str = "registry.example") -> Flight:
    """One that was looked at ten times a second."""
    flight = Flight(Assignment(number, 1, number, 1, host, is_demand=False), SIZE, lambda _: True)
    flight.body = _Body()
    for look in range(int(seconds * 10) + 1):
        flight.note(int(rate * look / 10) - flight.came)
        flight.sample(look / 10)
    return flight


def _of(flights: list[Flight], usual: float = 0.0) -> list[int]:
    return [flight.assignment.id for flight in stragglers(flights, lambda _: usual)]


def test_one_that_is_many_times_slower_than_the_others_is_left_behind() -> None:
    """And not one that is somewhat slower."""
    assert _of([_flight(1, 10 * MIB), _flight(2, 10 * MIB), _flight(3, 3 * MIB), _flight(4, MIB)]) == [4]


def test_one_for_which_nothing_comes() -> None:
    """Long before its silence is a failure."""
    assert _of([_flight(1, 10 * MIB), _flight(2, 10 * MIB), _flight(3, 0)]) == [3]


def test_the_last_one_is_judged_by_those_that_have_ended() -> None:
    """With nobody beside it; where nothing is known it is left alone."""
    assert _of([_flight(1, MIB)]) == []
    assert _of([_flight(1, MIB)], usual=10.0 * MIB) == [1]


def test_a_young_one_and_one_that_is_nearly_there_are_left_alone() -> None:
    """So that beginning again never costs more than it brings."""
    fast = [_flight(1, 10 * MIB), _flight(2, 10 * MIB)]
    assert _of([*fast, _flight(3, MIB, seconds=1.0)]) == []
    near = _flight(3, MIB)
    near.size = near.came + MIB
    assert _of([*fast, near]) == []


def test_other_hosts_are_no_measure() -> None:
    """A far registry is not left behind by a near one."""
    near = [_flight(n, 100 * MIB, host="near.example") for n in range(3)]
    assert _of([*near, _flight(4, MIB, host="far.example")]) == []


def test_who_holds_still_is_not_slow() -> None:
    """And has not been while it did."""
    held = _flight(3, 0)
    held.is_held = True
    held.sample(4.0)
    held.is_held = False
    held.sample(4.1)
    assert _of([_flight(1, 10 * MIB), _flight(2, 10 * MIB), held]) == []


def test_one_that_is_not_answered_yet_is_no_straggler() -> None:
    """Its registry may take its time, and is to be heard."""
    waits = _flight(3, 0)
    waits.body = None
    waits.sample(4.1)
    assert _of([_flight(1, 10 * MIB), _flight(2, 10 * MIB), waits]) == []


def test_nobody_is_given_up_twice() -> None:
    """It ends when its worker wakes."""
    slow = _flight(3, 0)
    slow.is_given_up = True
    assert _of([_flight(1, 10 * MIB), _flight(2, 10 * MIB), slow]) == []
