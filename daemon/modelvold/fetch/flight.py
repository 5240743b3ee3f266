"""A transfer under way: what its worker notes of it, and what others make of that."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Protocol

from modelvold.fetch.plan import Assignment

#: Seconds over which a rate is taken.
_WINDOW = 2.0
#: One that comes so many times slower than others from its host do, and would take so many times longer than elsewhere, is better
#: begun again.
_SLOWER, _LONGER = 5.0, 3.0
#: So many rates of others make a comparison.
_ENOUGH = 2
#: Looks at one, of which the later half tells how fast it is.
_LATE = 4
#: Seconds within which one that is to end does so by itself, where bytes come.
_SOON = 0.2


class Abortable(Protocol):
    @property
    def host(self) -> str: ...

    def abort(self) -> None: ...


class Flight:
    """Its worker alone writes `body`, `opened`, `came` and `last`; what the others do to it is under the fetcher's lock."""

    def __init__(self, assignment: Assignment, size: int, wait: Callable[[Flight], bool]) -> None:
        self.assignment = assignment
        self.size = size
        self.body: Abortable | None = None
        self.opened = 0.0
        self.came = 0
        self.last = time.monotonic()  # when something came, or it began
        self.is_held = False
        self.is_awaited = False
        self.must_end = False
        self.is_given_up = False
        self.pause_until = 0.0  # by the bound on bandwidth
        self._wait = wait
        self._samples: deque[tuple[float, int]] = deque()  # when how much had come, since it last was held

    @property
    def host(self) -> str:
        return self.assignment.host

    # -- its worker

    def open(self, body: Abortable) -> None:
        """Its answer has begun."""
        self.opened = time.monotonic()
        self.body = body

    def goes_on(self) -> bool:
        """Waits where it must hold still. False where it is to end at the byte it has come to."""
        if self.is_held or self.must_end or self.pause_until:
            return self._wait(self)
        return True

    def note(self, count: int) -> None:
        """So many bytes have come."""
        self.came += count
        self.last = time.monotonic()

    # -- the watch

    def give_up(self) -> None:
        """Wakes its worker, which ends."""
        if self.body is not None:
            self.body.abort()

    def is_silent_and_to_end(self, now: float) -> bool:
        """Whether it is to end where it is, and would wait for bytes before it did."""
        return self.must_end and not self.is_given_up and self.body is not None and now - self.last > _SOON

    def sample(self, now: float) -> None:
        if self.is_held or self.body is None:  # nothing can come
            self._samples.clear()
            return
        self._samples.append((now, self.came))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()

    @property
    def average(self) -> float:
        """Bytes a second since its answer began; 0 where nothing came."""
        took = self.last - self.opened
        return self.came / took if self.came and took > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Bytes a second, of late; None while it is too young to tell."""
        if len(self._samples) < 2:
            return None
        (since, before), (until, after) = self._samples[0], self._samples[-1]
        return (after - before) / (until - since) if until > since else None

    @property
    def late_rate(self) -> float:
        """Bytes a second in the second half of what was watched of it; 0 where that is too little to tell."""
        if len(self._samples) < _LATE:
            return 0.0
        (since, before), (until, after) = self._samples[len(self._samples) // 2], self._samples[-1]
        return (after - before) / (until - since) if until > since else 0.0

    @property
    def is_watched_long_enough(self) -> bool:
        return bool(self._samples) and self._samples[-1][0] - self._samples[0][0] >= _WINDOW * 0.9


def stragglers(flights: Sequence[Flight], usual: Callable[[str], float]) -> list[Flight]:
    """Those that are better given up and begun again from where they are. `usual(host)` is what one connection had there lately, 0
    where not known."""
    return [flight for flight in flights if _is_straggler(flight, flights, usual(flight.host))]


def _is_straggler(flight: Flight, flights: Iterable[Flight], usual: float) -> bool:
    rate = flight.rate
    if flight.is_given_up or flight.assignment.is_stream or flight.is_held or flight.pause_until:
        return False  # a stream would begin with its first byte again
    if rate is None or not flight.is_watched_long_enough:
        return False
    rates = [other.rate for other in flights if other is not flight and other.host == flight.host]
    known = [other for other in rates if other is not None] + ([usual] * _ENOUGH if usual else [])
    if len(known) < _ENOUGH:
        return False
    others = median(known)
    left = flight.size - flight.came
    return rate * _SLOWER < others and left > _LONGER * max(rate, 1.0) * (left / others + 1.0)
