"""All transfers under way, looked at together: what each host is worth, who is left behind, who holds still. The fetcher's lock guards
it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from statistics import median

from modelvold.fetch.flight import Flight, stragglers
from modelvold.fetch.pace import Pace
from modelvold.fetch.plan import Assignment, Plan
from modelvold.fetch.stretch import Key
from modelvold.fetch.yielding import holds

#: Seconds between two looks.
TICK = 0.05
#: Transfers that ended lately, by which one that goes on alone is judged; and bytes below which one says nothing.
_LATELY, _ENOUGH = 16, 1 << 20
#: So much of what all had together, had by one alone, is all that there is.
_FULL = 0.8
#: Segments of which it is remembered that a host was slow with them.
_MOST_SLOW = 1024


class Traffic:
    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._flights: dict[int, Flight] = {}
        self._paces: dict[str, Pace] = {}
        self._holding: dict[
            str, float
        ] = {}  # hosts whose prefetches hold still, and what all brought a second before that
        self._came: dict[str, int] = {}  # by host, by transfers that have ended
        self._rates: dict[str, deque[float]] = {}  # of those
        self._slow: OrderedDict[Key, set[str]] = (
            OrderedDict()
        )  # the hosts that were given up, by what was asked for first

    @property
    def is_idle(self) -> bool:
        return not self._flights

    def pace(self, host: str) -> int:
        """How many requests at a time prefetch should make there."""
        return 0 if host in self._holding else self._pace(host).limit

    def begin(self, assignment: Assignment, size: int, wait: Callable[[Flight], bool]) -> Flight:
        flight = Flight(assignment, size, wait)
        self._flights[assignment.id] = flight
        return flight

    def end(self, flight: Flight, now: float, *, is_refused: bool) -> None:
        host = flight.host
        self._flights.pop(flight.assignment.id, None)
        self._came[host] = self._came.get(host, 0) + flight.came
        if flight.came >= _ENOUGH and flight.average:
            self._rates.setdefault(host, deque(maxlen=_LATELY)).append(flight.average)
        others = any(other.assignment.is_demand for other in self._of(host))
        if host in self._holding and flight.assignment.is_demand and not others:
            self._learn_alone(flight, now)
        if is_refused and not flight.came:
            self._pace(host).refuse(now)

    def slow(self, keys: Iterable[Key]) -> frozenset[str]:
        """Hosts that are better not asked for these again."""
        return frozenset(host for key in keys for host in self._slow.get(key, ()))

    def tick(self, now: float, *, is_busy: bool) -> list[Flight]:
        """Looks at all of them, while the machine's cores are all in use, or not. Those that are to be given up: they are
        left behind, or are to end and do not."""
        for flight in self._flights.values():
            flight.sample(now)
        for host in {flight.host for flight in self._flights.values()}:
            flights = self._of(host)
            under_way = 0 if any(flight.is_held for flight in flights) else len(flights)
            came = self._came.get(host, 0) + sum(flight.came for flight in flights)
            self._pace(host).tick(now, came, under_way, is_busy=is_busy)
        left_behind = stragglers(list(self._flights.values()), self._usual)
        for flight in left_behind:
            self._note_slow(flight)
        silent = [flight for flight in self._flights.values() if flight.is_silent_and_to_end(now)]
        for flight in silent:
            flight.is_given_up = True
        return left_behind + silent

    def review(self, plan: Plan, now: float) -> bool:
        """Who is to end, and who holds still. Whether some need not wait any more."""
        waited = plan.waited_for()
        are_let_go = False
        for host in {flight.host for flight in self._flights.values()} | set(self._holding):
            rushed = [self._flights[number] for number in plan.rushed(host) if number in self._flights]
            is_held = holds((flight.last for flight in rushed), now, each_counts=self._pace(host).each_counts)
            self._note_holding(host, is_held=is_held)
            for flight in self._of(host):
                was = flight.is_held
                flight.is_awaited = flight.assignment.id in waited
                flight.is_held = is_held and not flight.assignment.is_demand and not flight.is_awaited
                flight.must_end = flight.must_end or plan.must_cede(flight.assignment)
                is_let_go = (was and not flight.is_held) or (flight.is_awaited and flight.pause_until > 0)
                are_let_go = are_let_go or is_let_go or flight.must_end
        return are_let_go

    def _note_holding(self, host: str, *, is_held: bool) -> None:
        if not is_held:
            self._holding.pop(host, None)
        elif host not in self._holding:
            self._holding[host] = sum(flight.rate or 0.0 for flight in self._of(host))

    def _learn_alone(self, flight: Flight, now: float) -> None:
        """All others held still for it from its beginning."""
        before = self._holding[flight.host]
        if before and flight.late_rate >= _FULL * before:
            self._pace(flight.host).find_full(now)

    def _of(self, host: str) -> list[Flight]:
        return [flight for flight in self._flights.values() if flight.host == host]

    def _pace(self, host: str) -> Pace:
        if host not in self._paces:
            self._paces[host] = Pace(self._per_host)
        return self._paces[host]

    def _usual(self, host: str) -> float:
        rates = self._rates.get(host)
        return median(rates) if rates else 0.0

    def _note_slow(self, flight: Flight) -> None:
        flight.is_given_up = True
        for key in flight.assignment.keys:
            self._slow.setdefault(key, set()).add(flight.body.host if flight.body else "")
            self._slow.move_to_end(key)
        while len(self._slow) > _MOST_SLOW:
            self._slow.popitem(last=False)
