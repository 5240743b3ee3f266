"""Pulls: every byte of a volume present, durable and verified, however long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from modelvold.errors import Failure, Mismatch, Unreachable
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.rates import Course, Rates
from modelvold.lending.report import Progress
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store

#: Seconds between two looks at how far a pull is: each asks every segment. Its end is noticed at once.
LOOK = 0.25


class Pulls:
    """`prefetch(volume, contents)` begins to fetch these; `stall`: seconds without a byte after which a pull ends."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        rates: Rates,
        prefetch: Callable[[str, Sequence[Content]], None],
        *,
        stall: float,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._rates = rates
        self._prefetch = prefetch
        self._stall = stall
        self._news = _News()
        self._lock = threading.Lock()  # guards _running
        self._running: dict[str, int] = {}
        store.watch(self._news)

    def is_running(self, volume: str) -> bool:
        with self._lock:
            return bool(self._running.get(volume))

    def run(self, row: VolumeRow, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """The first Progress is what was here before, the last one is done, unless it was `cancelled`. Raises what keeps it from that."""
        with self._lock:
            self._running[row.id] = self._running.get(row.id, 0) + 1
        try:
            yield from self._run(row, cancelled)
        finally:
            with self._lock:
                self._running[row.id] -= 1

    def progress(self, row: VolumeRow) -> Progress:
        """What is here now, whether or not it is pulled."""
        rate, step = self._rates.of(self._contents(row)), self._step(row)
        return replace(step, rate=rate, eta=(step.size - step.present) / rate if rate > 0 else -1.0)

    def _run(self, row: VolumeRow, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        contents = self._contents(row)
        for content in contents:
            content.last_error = None
        step, course = self._step(row), Course()
        self._prefetch(row.id, [content for content in contents if not content.is_durable])
        yield step
        best, since = -1, time.monotonic()
        while not (step.done or cancelled()):
            self._store.check()
            if step.present + step.verified > best or any(self._store.is_verifying(content) for content in contents):
                best, since = max(best, step.present + step.verified), time.monotonic()
            self._check(row, contents, time.monotonic() - since)
            self._wait(contents)
            step = self._step(row)
            rate, eta = course.note(time.monotonic(), step.present, step.size)
            step = replace(step, rate=rate, eta=eta)
            yield step

    def _step(self, row: VolumeRow) -> Progress:
        contents = self._contents(row)
        present, durable = sum(c.present for c in contents), sum(c.durable for c in contents)
        verified = sum(c.verified for c in contents)
        return Progress(row.reference, row.size, present, durable, verified, 0.0, _are_here(contents))

    def _wait(self, contents: Sequence[Content]) -> None:
        """Until all are here, or one of them is in quarantine, or it is time to look."""
        until, seen = time.monotonic() + LOOK, self._news.count
        while not (_are_here(contents) or _is_one_wrong(contents)) and (left := until - time.monotonic()) > 0:
            seen = self._news.wait(seen, left)

    def _check(self, row: VolumeRow, contents: Sequence[Content], silence: float) -> None:
        for content in contents:
            if content.state == "quarantined":
                raise content.last_error or Mismatch(
                    f"layer {content.digest}: {content.reason}",
                    "remove the model with `modelvold rm`, and ask its producer",
                )
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


class _News:
    """Counts what the store tells of its contents (store.Watcher), for those who wait for one of them to be complete, or wrong.

    What only grows is no news: it comes thousands of times a second.
    """

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()  # guards count

    def wait(self, seen: int, seconds: float) -> int:
        """Until the count is another than was `seen`, at most so long; what it is then."""
        with self._changed:
            self._changed.wait_for(lambda: self.count != seen, seconds)
            return self.count

    def on_grown(self, segment: Segment) -> None:
        pass

    def on_durable(self, _segments: Sequence[Segment]) -> None:
        """Comes once more when a content is verified, be it without segments."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def on_leaving(self, segments: Sequence[Segment]) -> None:
        pass

    def on_missing(self, segments: Sequence[Segment]) -> None:
        pass

    def on_failed(self, segments: Sequence[Segment], _failure: Failure) -> None:
        self.on_durable(segments)


def _are_here(contents: Sequence[Content]) -> bool:
    return all(content.is_verified and content.is_durable for content in contents)


def _is_one_wrong(contents: Sequence[Content]) -> bool:
    return any(content.state == "quarantined" for content in contents)
