"""The fetcher: owns the workers, each of which makes one transfer at a time into a buffer of its own.

Memory is workers × buffer, whatever the model's size. The plan is consulted under one lock; requests and appends hold none. What
fails is left alone for a while by the plan, not by its worker, which does something else meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from modelvold import points
from modelvold.errors import Failing, Failure, Mismatch
from modelvold.fetch.plan import Assignment, Key, Plan
from modelvold.fetch.retry import is_waited_out
from modelvold.fetch.transfer import Blobs, Transfers
from modelvold.fetch.trouble import Troubles, Who
from modelvold.oci.reference import Repository
from modelvold.points import Point
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment
from modelvold.store.showing import waits_for_layer
from modelvold.store.store import Store

log = logging.getLogger(__name__)

#: Small enough that a waiting read of 128 KiB is answered soon on a slow link, large enough that Python's share is small.
BUFFER = 256 << 10
#: Files below this are read whole and first by every engine: configuration, tokenizers, templates.
_SMALL = 4 << 20


class Fetcher:
    """`sources_of(content)` names the repositories a content may be fetched from, best first; `stall` is how many seconds without
    a byte make a transfer end and start again."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        sources_of: Callable[[Content], Sequence[Repository]],
        *,
        workers: int,
        stall: float,
    ) -> None:
        self._store = store
        self._transfers = Transfers(store, blobs, sources_of, stall)
        self._changed = threading.Condition()  # guards _plan, _troubles, _ending
        self._plan = Plan(workers, self._is_missing, lambda key: segment.padded if (segment := self._find(key)) else 0)
        self._troubles = Troubles()
        self._ending = False
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{n}") for n in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Nothing more begins, and what ends from now on is nobody's failure. Bodies that come end at once; a request that waits for
        its answer ends when the client is closed, else by its time-out."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._transfers.stop()

    # -- asked by the rooms above

    def demand(self, segment: Segment) -> None:
        """Somebody waits for this segment. Returns at once; what becomes of it the store's watchers are told."""
        content = content_of(segment)
        is_shown_as_a_whole = waits_for_layer(self._store.verify, content)
        with self._changed:
            self._plan.demand(_key(segment))
            if is_shown_as_a_whole:
                self._prefetch(content)
            self._changed.notify_all()

    def release(self, segment: Segment) -> None:
        with self._changed:
            self._plan.release(_key(segment))
            self._troubles.release(_key(segment))

    def prefetch(self, contents: Sequence[Content]) -> None:
        """All of these, small ones first, each from its start."""
        with self._changed:
            for content in sorted(contents, key=lambda c: c.length >= _SMALL):
                self._plan.prefetch(content.id, len(content.segments))
            self._changed.notify_all()

    def start_over(self, content: Content) -> bool:
        """All of it again, whose bytes were wrong and are gone, from hosts that are no suspects; False where there is none."""
        if not self._transfers.has_another(content):
            return False
        self.prefetch([content])
        return True

    def forget(self, contents: Sequence[Content]) -> None:
        with self._changed:
            for content in contents:
                self._plan.forget(content.id)
                self._troubles.forget(content.id)

    def is_prefetching(self, content: Content) -> bool:
        with self._changed:
            return self._plan.is_prefetching(content.id)

    # -- the workers

    def _work(self) -> None:
        buffer = memoryview(bytearray(BUFFER))
        while (assignment := self._next()) is not None:
            failure, is_right = None, False
            try:
                is_right = self._transfer(assignment, buffer)
            except Failure as raised:
                failure = raised
            except Exception as error:  # noqa: BLE001 — logged where it is judged
                failure = self._unexpected(assignment, error)
            points.at(Point.FETCH_ENDED)
            if is_right:
                self._on_success(assignment)
            self._end(assignment, failure)

    def _next(self) -> Assignment | None:
        with self._changed:
            while not self._ending:
                now = time.monotonic()
                assignment = self._plan.next(now)
                if assignment is not None:
                    return assignment
                at = self._plan.next_time()
                self._changed.wait(None if at is None else max(0.0, at - now))
            return None

    def _transfer(self, assignment: Assignment, buffer: memoryview) -> bool:
        """See Transfers.run: some segments are left where a demand has taken one in its way."""

        def begin(segment: Segment) -> bool:
            with self._changed:
                return self._plan.begin(assignment, _key(segment))

        segments = [self._segment(key) for key in assignment.keys]
        return self._transfers.run(segments, begin, buffer, is_demand=assignment.is_demand)

    def _unexpected(self, assignment: Assignment, error: Exception) -> Failure | None:
        if self._store.has(assignment.content):
            log.error("transfer content=%d failed", assignment.content, exc_info=error)
            return Failing(f"transfer: {error}")
        log.info("drop transfer content=%d reason=removed", assignment.content)
        return None

    def _on_success(self, assignment: Assignment) -> None:
        who: Who = assignment.keys[0] if assignment.is_demand else assignment.content
        with self._changed:
            self._plan.resume_prefetch(assignment.content)
            is_news = self._troubles.work(assignment.content, who)
        segment = self._find(assignment.keys[0])
        if segment is None:
            return
        content = content_of(segment)
        if not isinstance(content.last_error, Failing | Mismatch):  # those are the store's to take back
            content.last_error = None
        if is_news:
            log.info("fetch content=%s goes on", content.digest)

    def _end(self, assignment: Assignment, failure: Failure | None) -> None:
        unfinished = [segment for key in assignment.keys if (segment := self._find(key)) and not segment.is_complete]
        pause: float | None = 0.0
        if failure is not None and unfinished and not self._ending:
            pause = self._on_failure(assignment, unfinished, failure)
        with self._changed:
            keys = [_key(segment) for segment in unfinished] if pause is not None else []
            self._plan.end(assignment, keys, time.monotonic() + pause if pause else 0.0)
            self._changed.notify_all()

    def _on_failure(self, assignment: Assignment, unfinished: Sequence[Segment], failure: Failure) -> float | None:
        """Seconds to leave it alone; None where asking again is no use: then whoever waits has been told."""
        content, first, now = content_of(unfinished[0]), unfinished[0], time.monotonic()
        with self._changed:
            is_awaited = assignment.is_demand or self._plan.is_awaited(_key(first))
            who, present = (_key(first), first.present) if is_awaited else (content.id, content.present)
            pause = self._troubles.fail(who, present, failure, now)
            is_news = self._troubles.is_news(content.id, failure, now)
            if pause is None:
                self._plan.stop_prefetch(content.id)
            elif not assignment.is_demand and not is_waited_out(failure):
                self._plan.suspend_prefetch(content.id)
        content.last_error = failure
        if is_news:
            log.warning("fetch content=%s segment=%d failed error=%r", content.digest, first.number, str(failure))
        if pause is None:
            self._store.fail(unfinished, failure)
        return pause

    def _prefetch(self, content: Content) -> None:
        if not self._plan.is_prefetching(content.id):
            self._plan.prefetch(content.id, len(content.segments))

    def _segment(self, key: Key) -> Segment:
        return self._store.content(key[0]).segments[key[1]]

    def _find(self, key: Key) -> Segment | None:
        """None where the content was removed meanwhile."""
        try:
            return self._segment(key)
        except KeyError:
            return None

    def _is_missing(self, key: Key) -> bool:
        segment = self._find(key)
        return segment is not None and not segment.is_complete


def _key(segment: Segment) -> Key:
    return content_of(segment).id, segment.number
