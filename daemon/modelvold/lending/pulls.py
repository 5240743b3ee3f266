"""Pulls: every byte of a volume present, durable and verified, however long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from modelvold.errors import Mismatch, Unreachable
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.rates import Rates
from modelvold.lending.report import Progress
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store

#: Seconds between two looks at how far a pull is.
LOOK = 0.2


class Pulls:
    """`stall`: seconds without a byte after which a pull ends."""

    def __init__(self, store: Store, fetcher: Fetcher, rates: Rates, *, stall: float) -> None:
        self._store = store
        self._fetcher = fetcher
        self._rates = rates
        self._stall = stall
        self._lock = threading.Lock()  # guards _running
        self._running: dict[str, int] = {}

    def is_running(self, volume: str) -> bool:
        with self._lock:
            return bool(self._running.get(volume))

    def run(self, row: VolumeRow, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """The last Progress is done, unless it was `cancelled`. Raises what keeps it from that."""
        with self._lock:
            self._running[row.id] = self._running.get(row.id, 0) + 1
        try:
            yield from self._run(row, cancelled)
        finally:
            with self._lock:
                self._running[row.id] -= 1

    def progress(self, row: VolumeRow) -> Progress:
        contents = self._contents(row)
        present, durable = sum(c.present for c in contents), sum(c.durable for c in contents)
        verified = sum(c.verified for c in contents)
        is_done = all(c.is_durable and c.is_verified for c in contents)
        return Progress(row.reference, row.size, present, durable, verified, self._rates.of(contents), is_done)

    def _run(self, row: VolumeRow, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        contents = self._contents(row)
        for content in contents:
            content.last_error = None
        self._fetcher.prefetch([content for content in contents if not content.is_durable])
        best, since = -1, time.monotonic()
        while not cancelled():
            step = self.progress(row)
            yield step
            if step.done:
                return
            self._store.check()
            if step.present + step.verified > best or any(self._store.is_verifying(content) for content in contents):
                best, since = max(best, step.present + step.verified), time.monotonic()
            self._check(row, contents, time.monotonic() - since)
            time.sleep(LOOK)

    def _check(self, row: VolumeRow, contents: Sequence[Content], silence: float) -> None:
        for content in contents:
            if content.state == "quarantined":
                raise content.last_error or Mismatch(f"layer {content.digest}: {content.reason}")
            is_left = content.present < content.length and not self._fetcher.is_prefetching(content)
            if content.last_error and is_left:
                raise content.last_error
        if silence > self._stall:
            error = next((c.last_error for c in contents if c.last_error), None)
            raise error or Unreachable(
                f"{row.reference}: no byte came for {self._stall:g} s", "see whether the registry answers"
            )

    def _contents(self, row: VolumeRow) -> list[Content]:
        return [self._store.content(number) for number in row.contents]
