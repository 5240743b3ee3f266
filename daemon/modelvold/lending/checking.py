"""Checks that an operator asks for: durable bytes read again, and what is wrong fetched again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from modelvold.errors import Failing, Failure
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.pulls import LOOK
from modelvold.lending.report import Checked
from modelvold.store.content import Content
from modelvold.store.scrub import RATE, Pace
from modelvold.store.segment import Segment
from modelvold.store.store import Store


class Checking:
    """`stall`: seconds without a byte after which a repair ends."""

    def __init__(self, store: Store, fetcher: Fetcher, *, stall: float) -> None:
        self._store = store
        self._fetcher = fetcher
        self._stall = stall

    def run(
        self, reference: str, contents: Sequence[Content], *, repair: bool, cancelled: Callable[[], bool]
    ) -> Iterator[Checked]:
        """A step after each segment, the last one done unless it was `cancelled`. Raises what keeps it from that."""
        size = sum(s.length for content in contents for s in content.segments if s.durable and not s.moved)
        began, read, told = time.monotonic(), 0, 0.0
        wrong: list[Segment] = []

        def step(*, repaired: int = 0, done: bool = False) -> Checked:
            rate = read / max(time.monotonic() - began, 0.001)
            return Checked(reference, size, read, len(wrong), repaired, rate, done)

        pace = Pace(RATE, threading.Event().wait)
        for content in contents:
            for looked in self._store.scrub(content, pace):
                read += looked.segment.length
                wrong += [looked.segment] if looked.is_right is False else []
                if cancelled():
                    return
                if time.monotonic() - told > LOOK:
                    told = time.monotonic()
                    yield step()
        if repair:
            for repaired in self._repair(wrong, cancelled):
                yield step(repaired=repaired)
            if cancelled():
                return
        yield step(repaired=len(wrong) if repair else 0, done=True)

    def _repair(self, wrong: Sequence[Segment], cancelled: Callable[[], bool]) -> Iterator[int]:
        """Fetches them; how many are right again, now and then until all are."""
        for segment in wrong:
            segment.failure = None
            self._fetcher.demand(segment)
        best, since = -1, time.monotonic()
        while not cancelled():
            repaired, present = sum(s.durable for s in wrong), sum(s.present for s in wrong)
            if repaired == len(wrong):
                return
            if present > best:
                best, since = present, time.monotonic()
            if (failure := next((s.failure for s in wrong if s.failure), None)) is not None:
                raise failure
            if time.monotonic() - since > self._stall:
                raise self._stalled(wrong)
            yield repaired
            time.sleep(LOOK)

    def _stalled(self, wrong: Sequence[Segment]) -> Failure:
        return Failing(
            f"{len(wrong)} wrong segments: no byte came for {self._stall:g} s", "see whether the registry answers"
        )
