"""All transfers looked at together."""

from __future__ import annotations

from modelvold.fetch.flight import Flight
from modelvold.fetch.plan import Assignment, Plan
from modelvold.fetch.stretch import Key, Stretch
from modelvold.fetch.traffic import Traffic

MIB, HOST = 1 << 20, "registry.example"


class _Segments:
    """64 segments of 64 MiB in each content, none of them here."""

    def is_missing(self, _key: Key) -> bool:
        return True

    def length(self, _key: Key) -> int:
        return 64 * MIB

    def count(self, _content: int) -> int:
        return 64

    def host(self, _content: int) -> str:
        return HOST


class _Body:
    host = HOST

    def abort(self) -> None:
        """Nobody reads it."""


class _Line:
    """Sixteen prefetches; `look` lets a twentieth of a second pass in which each has come on so far."""

    def __init__(self) -> None:
        self.traffic = Traffic(16)
        self.plan = Plan(_Segments(), 32, 16, lambda _: 16)
        self.plan.prefetch([Stretch(1, 0, 64)])
        self.now = 0.0
        self.flights = [self.begin() for _ in range(16)]

    def begin(self) -> Flight:
        assignment = self.plan.next(self.now)
        assert isinstance(assignment, Assignment)
        flight = self.traffic.begin(assignment, 64 * MIB, lambda _: True)
        flight.open(_Body())
        return flight

    def look(self, **rates: float) -> None:
        """`prefetch` and `demand` in bytes a second of each."""
        self.now += 0.05
        for flight in self.flights:
            if not flight.is_held:
                flight.came += int(rates["demand" if flight.assignment.is_demand else "prefetch"] / 20)
            flight.last = self.now
        self.traffic.tick(self.now, is_busy=False)
        self.traffic.review(self.plan, self.now)


def test_prefetch_holds_still_and_begins_nothing_for_a_demand() -> None:
    """And goes on when that has come. (The demand's host gives each a share.)"""
    line = _Line()
    for _ in range(10):
        line.look(prefetch=3 * MIB)
    line.plan.demand((2, 5))
    line.flights.append(line.begin())
    line.look(prefetch=3 * MIB, demand=3 * MIB)
    assert [flight.is_held for flight in line.flights] == [True] * 16 + [False]
    assert line.traffic.pace(HOST) == 0
    line.plan.end(line.flights[-1].assignment)
    line.traffic.end(line.flights.pop(), line.now, is_refused=False)
    line.look(prefetch=3 * MIB)
    assert not any(flight.is_held for flight in line.flights)


def test_a_demand_that_filled_the_line_alone_leaves_few_prefetches() -> None:
    """Sixteen had 48 MiB a second together, it had 45: three will do."""
    assert _pace_after(demand=45 * MIB) == 3


def test_a_demand_that_did_not_leaves_them() -> None:
    """It had no more than each of the sixteen."""
    assert _pace_after(demand=4 * MIB) > 3


def _pace_after(demand: float) -> int:
    line = _Line()
    for _ in range(10):
        line.look(prefetch=3 * MIB)
    line.plan.demand((2, 5))
    line.flights.append(line.begin())
    for _ in range(8):
        line.look(prefetch=3 * MIB, demand=demand)
    flight = line.flights.pop()
    line.traffic.end(flight, line.now, is_refused=False)
    line.plan.end(flight.assignment)
    line.traffic.review(line.plan, line.now)
    return line.traffic.pace(HOST)
