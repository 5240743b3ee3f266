"""The fetcher: owns the workers, each of which makes one transfer at a time into a buffer of its own.

Memory is workers × buffer, whatever the model's size. The plan is consulted under one lock; requests and appends hold none. What
fails is left alone for a while by the plan, not by its worker, which does something else meanwhile. While transfers are under way the
*watch* looks at them some times a second: how fast they come, which are left behind, which hold still for whom; and it wakes a worker
when the time for something has come. Nothing ticks while nothing is fetched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from modelvold import points
from modelvold.errors import Exhausted, Failing, Failure, Mismatch, Unreachable
from modelvold.fetch.bandwidth import Bandwidth
from modelvold.fetch.cores import Cores
from modelvold.fetch.flight import Flight
from modelvold.fetch.holdings import Holdings
from modelvold.fetch.plan import Assignment, Plan
from modelvold.fetch.retry import is_waited_out
from modelvold.fetch.stretch import Key, Stretch
from modelvold.fetch.traffic import TICK, Traffic
from modelvold.fetch.transfer import Blobs, Body, RangedError, RangelessError, Transfers
from modelvold.fetch.trouble import Troubles, Who
from modelvold.oci.reference import Repository
from modelvold.points import Point
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment
from modelvold.store.showing import waits_for_layer
from modelvold.store.store import Store

log = logging.getLogger(__name__)

#: What one read of a socket brings at most; it brings what there is, so that a waiting read is answered soon whatever this is. Large
#: enough that Python's share is small, small enough that sha256 finds it in the processor's cache.
BUFFER = 512 << 10
#: Seconds of rest after what nobody has thought of.
_AFTER_ERROR = 5.0


class Fetcher:
    """`sources_of(content)` names the repositories a content may be fetched from, best first. `connections` bounds requests in all,
    `per_host` those to one registry (a demand may have one more), `bandwidth` the bytes a second of all together. `stall` is how many
    seconds without a byte make a transfer end and start again."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        sources_of: Callable[[Content], Sequence[Repository]],
        *,
        connections: int,
        per_host: int,
        stall: float,
        bandwidth: int | None = None,
    ) -> None:
        self._store = store
        self._transfers = Transfers(store, blobs, sources_of, stall)
        self._holdings = Holdings(store, sources_of)
        self._lock = threading.Lock()  # guards _plan, _traffic, _bandwidth, _troubles, _ending
        self._work = threading.Condition(self._lock)  # a worker may find something to do
        self._held = threading.Condition(self._lock)  # a transfer need not hold still any more
        self._watching = threading.Condition(self._lock)  # there is something to watch
        self._ticking = threading.Condition(self._lock)  # notified at the end alone
        self._traffic = Traffic(per_host)
        self._cores = Cores()
        self._plan = Plan(self._holdings, connections, per_host, self._traffic.pace)
        self._bandwidth = Bandwidth(bandwidth)
        self._troubles = Troubles()
        self._ending = False
        self._threads = [threading.Thread(target=self._run, name=f"fetch-{n}") for n in range(connections)]
        self._threads.append(threading.Thread(target=self._watch, name="fetch-watch"))

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
        with self._lock:
            self._ending = True
            for condition in (self._work, self._held, self._watching, self._ticking):
                condition.notify_all()
        self._transfers.stop()

    # -- asked by the rooms above

    def demand(self, segment: Segment) -> None:
        """Somebody waits for this segment. Returns at once; what becomes of it the store's watchers are told."""
        content = content_of(segment)
        is_shown_as_a_whole = waits_for_layer(self._store.verify, content)
        if not self._holdings.knows(content):
            self._holdings.learn(content)
        with self._lock:
            self._plan.demand(_key(segment))
            if is_shown_as_a_whole and self._plan.is_ahead_done(content.id):
                self._plan.prefetch([whole(content)])
            self._review()
            self._work.notify()

    def release(self, segment: Segment) -> None:
        with self._lock:
            self._plan.release(_key(segment))
            self._troubles.release(_key(segment))
            self._review()
            self._work.notify()  # a prefetch may have it back

    def prefetch(self, order: Sequence[Stretch]) -> None:
        """These, best first, behind what was asked for before. What is here, or on its way, is not fetched again."""
        for number in dict.fromkeys(stretch.content for stretch in order):
            if self._store.has(number):
                self._holdings.learn(self._store.content(number))
        with self._lock:
            self._plan.prefetch(order)
            self._work.notify()

    def start_over(self, content: Content) -> bool:
        """All of it again, whose bytes were wrong and are gone, from hosts that are no suspects; False where there is none."""
        if not self._transfers.has_another(content):
            return False
        self.prefetch([whole(content)])
        return True

    def forget(self, contents: Sequence[Content]) -> None:
        with self._lock:
            for content in contents:
                self._plan.forget(content.id)
                self._holdings.forget(content)
                self._troubles.forget(content.id)

    def is_prefetching(self, content: Content) -> bool:
        with self._lock:
            return self._plan.is_prefetching(content.id)

    # -- the workers

    def _run(self) -> None:
        buffer = memoryview(bytearray(BUFFER))
        while (flight := self._next()) is not None:
            failure, is_right = None, False
            try:
                is_right = self._transfer(flight, buffer)
            except RangelessError:
                self._on_rangeless(flight.assignment, knows_ranges=False)
            except RangedError:
                self._on_rangeless(flight.assignment, knows_ranges=True)
            except Failure as raised:
                failure = None if flight.is_given_up and isinstance(raised, Unreachable) else raised
            except Exception as error:  # noqa: BLE001 — logged where it is judged
                failure = self._unexpected(flight.assignment, error)
            points.at(Point.FETCH_ENDED)
            if is_right:
                self._on_success(flight)
            self._end(flight, failure)

    def _next(self) -> Flight | None:
        with self._lock:
            while not self._ending:
                assignment = self._plan.next(time.monotonic())
                if assignment is not None:
                    size = sum(self._holdings.left(key) for key in assignment.keys)
                    flight = self._traffic.begin(assignment, size, self._wait)
                    self._review()
                    self._work.notify()  # there may be more to do
                    self._watching.notify()
                    return flight
                self._review()  # what has come due may want others to make way
                self._watching.notify()  # which wakes us when the time for something has come
                self._work.wait()
            return None

    def _transfer(self, flight: Flight, buffer: memoryview) -> bool:
        """See Transfers.run: some segments are left where a demand has taken one in its way."""
        assignment = flight.assignment

        def begin(segment: Segment) -> bool:
            with self._lock:
                return self._plan.begin(assignment, _key(segment))

        with self._lock:
            slow = self._traffic.slow(assignment.keys)
        return self._transfers.run(
            [self._holdings.segment(key) for key in assignment.keys],
            _Task(flight, begin, self._bandwidth.piece, self._pay if self._bandwidth.is_bound else None),
            buffer,
            is_read=assignment.is_demand or assignment.is_led,
            slow=slow,
            is_stream=assignment.is_stream,
        )

    def _pay(self, flight: Flight, count: int) -> None:
        now = time.monotonic()
        with self._lock:
            pause = self._bandwidth.take(count, now, is_demand=flight.assignment.is_demand or flight.is_awaited)
        if pause:
            flight.pause_until = now + pause

    def _wait(self, flight: Flight) -> bool:
        """Until it need not hold still; False where it is to end."""
        with self._lock:
            while not (self._ending or flight.must_end):
                is_first = flight.is_awaited and not flight.assignment.is_demand  # what it owes, it owes as a prefetch
                left = 0.0 if is_first else flight.pause_until - time.monotonic()
                if not flight.is_held and left <= 0:
                    flight.pause_until = 0.0
                    return True
                self._held.wait(None if flight.is_held else left)
            return False

    def _unexpected(self, assignment: Assignment, error: Exception) -> Failure | None:
        if self._store.has(assignment.content):
            log.error("transfer content=%d failed", assignment.content, exc_info=error)
            return Failing(f"transfer: {error}")
        log.info("drop transfer content=%d reason=removed", assignment.content)
        return None

    def _on_rangeless(self, assignment: Assignment, *, knows_ranges: bool) -> None:
        log.info(
            "stream content=%d is_over=%s reason='what the host knows of ranges'", assignment.content, knows_ranges
        )
        with self._lock:
            (self._plan.unstream if knows_ranges else self._plan.stream)(assignment.content)

    def _on_success(self, flight: Flight) -> None:
        assignment = flight.assignment
        if not flight.came:
            return
        who: Who = assignment.keys[0] if assignment.is_demand else assignment.content
        with self._lock:
            self._plan.resume_prefetch(assignment.content)
            is_news = self._troubles.work(assignment.content, who)
        segment = self._holdings.find(assignment.keys[0])
        if segment is None:
            return
        content = content_of(segment)
        if not isinstance(content.last_error, Failing | Mismatch):  # those are the store's to take back
            content.last_error = None
        if is_news:
            log.info("fetch content=%s goes on", content.digest)

    def _end(self, flight: Flight, failure: Failure | None) -> None:
        keys = flight.assignment.keys
        with self._lock:
            keys = [key for key in keys if self._plan.has(flight.assignment, key)]
        unfinished = [segment for key in keys if (segment := self._holdings.find(key)) and not segment.is_complete]
        pause: float | None = 0.0
        if failure is not None and unfinished and not self._ending:
            try:
                pause = self._on_failure(flight.assignment, unfinished, failure)
            except Exception:  # what was to be told of it is lost; its segments must not be
                log.exception("failure content=%d is not told", flight.assignment.content)
                pause = _AFTER_ERROR
        with self._lock:
            left = [_key(segment) for segment in unfinished] if pause is not None else []
            now = time.monotonic()
            self._traffic.end(flight, now, is_refused=isinstance(failure, Unreachable))
            went_well = failure is None and flight.came > 0
            self._plan.end(flight.assignment, left, now + pause if pause else 0.0, went_well=went_well)
            if not self._store.has(flight.assignment.content):
                self._plan.forget(flight.assignment.content)
                self._troubles.forget(flight.assignment.content)
            self._review()

    def _on_failure(self, assignment: Assignment, unfinished: Sequence[Segment], failure: Failure) -> float | None:
        """Seconds to leave it alone; None where asking again is no use: then whoever waits has been told."""
        content, first, now = content_of(unfinished[0]), unfinished[0], time.monotonic()
        with self._lock:
            is_awaited = assignment.is_demand or self._plan.is_awaited(_key(first))
            who, present = (_key(first), first.present) if is_awaited else (content.id, content.present)
            pause = self._troubles.fail(who, present, failure, now)
            is_news = self._troubles.is_news(content.id, failure, now)
            if pause is None:
                self._plan.stop_prefetch(content.id)
            elif isinstance(failure, Exhausted) and not assignment.is_demand:
                self._plan.confine_prefetch(content.id)
            elif not assignment.is_demand and not is_waited_out(failure):
                self._plan.suspend_prefetch(content.id)
        content.last_error = failure
        if is_news:
            log.warning("fetch content=%s segment=%d failed error=%r", content.digest, first.number, str(failure))
        if pause is None:
            self._store.fail(unfinished, failure)
        return pause

    # -- the watch

    def _watch(self) -> None:
        while not self._ending:
            try:
                is_busy = self._cores.are_busy()
                with self._lock:
                    left_behind = self._look(time.monotonic(), is_busy=is_busy)
            except Exception:  # without it nobody who holds still would go on
                log.exception("watch failed")
                time.sleep(TICK)
                continue
            for flight in left_behind:
                content = flight.assignment.content
                log.info("abandon transfer content=%d host=%s came=%d reason=slow", content, flight.host, flight.came)
                flight.give_up()

    def _look(self, now: float, *, is_busy: bool) -> list[Flight]:
        """Once, or a wait until there is something to look at. The transfers to give up."""
        at = self._plan.next_time()
        if at is not None and at <= now:
            self._work.notify()
        if self._traffic.is_idle and not self._ending:
            self._watching.wait(None if at is None else max(TICK, at - now))
            return []
        left_behind = self._traffic.tick(now, is_busy=is_busy)
        self._review()
        self._work.notify()  # the pace may allow more
        self._ticking.wait(TICK)
        return left_behind

    def _review(self) -> None:
        """Who holds still and who is to end, as things are now."""
        if self._traffic.review(self._plan, time.monotonic()):
            self._held.notify_all()


class _Task:
    """What one transfer is told, and tells (fetch.transfer.Task). `pay` is told of what came, where bandwidth is bounded."""

    def __init__(
        self,
        flight: Flight,
        begin: Callable[[Segment], bool],
        piece: Callable[[int], int],
        pay: Callable[[Flight, int], None] | None,
    ) -> None:
        self._flight = flight
        self._pay = pay
        self.goes_on = flight.goes_on
        self.begin = begin
        self.piece = piece

    def opened(self, body: Body) -> None:
        self._flight.open(body)

    def note(self, count: int) -> None:
        self._flight.note(count)
        if self._pay is not None:
            self._pay(self._flight, count)


def whole(content: Content) -> Stretch:
    return Stretch(content.id, 0, len(content.segments))


def _key(segment: Segment) -> Key:
    return content_of(segment).id, segment.number
