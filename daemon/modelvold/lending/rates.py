"""How fast bytes come, and when all of them will be here.

`Rates`: of every content that is not complete, by a sample a second. `Course`: of one pull, by its own looks, with an end in sight.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from modelvold.store.content import Content

_PERIOD = 1.0
_KEPT = 6
#: Seconds over which a pull's rate is averaged: longer than a segment takes on a slow connection.
_WINDOW = 5.0
#: Seconds before which a rate says nothing: of the first bytes many come at once.
_SOONEST = 0.5
#: Seconds within which most of a change is taken over by the time that is left.
_SETTLING = 3.0


class Course:
    """Where a pull of so many bytes is going. Pure: it is told the time."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._eta = -1.0
        self._then = 0.0

    def note(self, now: float, present: int, size: int) -> tuple[float, float]:
        """With `present` of `size` bytes here: bytes a second over the last seconds, and seconds until the rest is here, negative
        where unknown. The latter counts down; what changes the rate moves it by degrees, and only where nothing comes it is unknown."""
        if (
            self._looks and present < self._looks[-1][1]
        ):  # bytes were taken back: what comes again is no gain over what was
            self._looks.clear()
        self._looks.append((now, present))
        while now - self._looks[0][0] > _WINDOW and len(self._looks) > 2:
            self._looks.popleft()
        rate = self._rate()
        self._eta = self._left(now, size - present, rate)
        self._then = now
        return rate, self._eta

    def _rate(self) -> float:
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        return (after - before) / (last - first) if last - first >= _SOONEST else 0.0

    def _left(self, now: float, missing: int, rate: float) -> float:
        if missing <= 0:
            return 0.0
        if rate <= 0:
            return -1.0
        found = missing / rate
        if self._eta < 0:
            return found
        passed = now - self._then
        expected = max(0.0, self._eta - passed)
        return expected + (found - expected) * -math.expm1(-passed / _SETTLING)


class Rates:
    def __init__(self, contents: Callable[[], Sequence[Content]]) -> None:
        self._contents = contents
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()  # guards _samples
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rates")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def of(self, contents: Sequence[Content]) -> float:
        """Bytes a second that came for these over the last seconds."""
        with self._lock:
            spans = [(s[0], s[-1]) for c in contents if (s := self._samples.get(c.id)) and len(s) > 1]
        return sum((last[1] - first[1]) / (last[0] - first[0]) for first, last in spans if last[0] > first[0])

    def _run(self) -> None:
        while not self._ending.wait(_PERIOD):
            now = time.monotonic()
            growing = {content.id: content.present for content in self._contents() if not content.is_durable}
            with self._lock:
                self._samples = {number: self._samples.get(number, deque(maxlen=_KEPT)) for number in growing}
                for number, present in growing.items():
                    self._samples[number].append((now, present))
