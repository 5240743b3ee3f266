"""The fetcher: owns the workers, each of which makes one transfer at a time into a buffer of its own.

Memory is workers × buffer, whatever the model's size. The plan is consulted under one lock; requests and appends hold none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self

from modelvold.errors import Failing, Failure, Mismatch, Refused, Unreachable
from modelvold.fetch.plan import Assignment, Key, Plan
from modelvold.fetch.retry import pause_after
from modelvold.layer.extent import BlobOffset
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment
from modelvold.store.store import Store

log = logging.getLogger(__name__)

#: Small enough that a waiting read of 128 KiB is answered soon on a slow link, large enough that Python's share is small.
BUFFER = 256 << 10


class Body(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...

    def abort(self) -> None: ...


class Blobs(Protocol):
    """Where bytes come from: the registry's client."""

    def open_range(
        self, repository: Repository, digest: Digest, start: BlobOffset, end: BlobOffset, *, timeout: float, size: int
    ) -> AbstractContextManager[Body]: ...


class Fetcher:
    """`source_of(content)` names the repositories a content may be fetched from, best first; `stall` is how many seconds without
    a byte make a transfer end and start again."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        source_of: Callable[[Content], Sequence[Repository]],
        *,
        workers: int,
        stall: float,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._source_of = source_of
        self._stall = stall
        self._changed = threading.Condition()  # guards _plan, _attempts, _bodies, _ending
        self._plan = Plan(workers, self._is_missing, lambda key: segment.padded if (segment := self._find(key)) else 0)
        self._attempts: dict[int, tuple[int, int]] = {}  # content → failures in a row, bytes present at the last
        self._bodies: set[Body] = set()
        self._ending = False
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{n}") for n in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ending = True
            bodies = list(self._bodies)
            self._changed.notify_all()
        for body in bodies:
            body.abort()
        for thread in self._threads:
            thread.join()

    # -- asked by the rooms above

    def demand(self, segment: Segment) -> None:
        """Somebody waits for this segment. Returns at once; what becomes of it the store's watchers are told."""
        with self._changed:
            self._plan.demand(_key(segment))
            self._changed.notify_all()  # one could be a worker that pauses

    def release(self, segment: Segment) -> None:
        with self._changed:
            self._plan.release(_key(segment))

    def prefetch(self, contents: Sequence[Content]) -> None:
        """All of these, small ones first, each from its start."""
        with self._changed:
            for content in sorted(contents, key=lambda c: c.length >= _SMALL):
                self._plan.prefetch(content.id, len(content.segments))
            self._changed.notify_all()

    def forget(self, contents: Sequence[Content]) -> None:
        with self._changed:
            for content in contents:
                self._plan.forget(content.id)

    def is_prefetching(self, content: Content) -> bool:
        with self._changed:
            return self._plan.is_prefetching(content.id)

    # -- the workers

    def _work(self) -> None:
        buffer = memoryview(bytearray(BUFFER))
        while (assignment := self._next()) is not None:
            unfinished: list[Key] = []
            pause = 0.0
            try:
                unfinished = self._transfer(assignment, buffer)
            except Failure as failure:
                unfinished, pause = self._on_failure(assignment, failure)
            except Exception as error:
                if self._store.has(assignment.content):
                    log.exception("transfer content=%d failed", assignment.content)
                    unfinished, pause = self._on_failure(assignment, Failing(f"transfer: {error}"))
                else:
                    log.info("drop transfer content=%d reason=removed", assignment.content)
            self._end(assignment, unfinished, pause)

    def _next(self) -> Assignment | None:
        with self._changed:
            while not self._ending:
                assignment = self._plan.next()
                if assignment is not None:
                    return assignment
                self._changed.wait()
            return None

    def _end(self, assignment: Assignment, unfinished: list[Key], pause: float) -> None:
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._ending, pause)
            self._plan.end(assignment, unfinished)
            self._changed.notify_all()

    def _transfer(self, assignment: Assignment, buffer: memoryview) -> list[Key]:
        """Returns what it left because a demand has taken a segment in its way."""
        segments = [self._segment(key) for key in assignment.keys]
        content = content_of(segments[0])
        if content.state == "quarantined":
            raise Mismatch(f"layer {content.digest}: {content.reason}", "remove the model with `modelvold rm`")
        self._store.check()
        start = BlobOffset(segments[0].extent.start + segments[0].filled)
        end = BlobOffset(segments[-1].extent.end)
        with self._open(content, start, end) as body:
            self._hold(body)
            try:
                at = start
                for key, segment in zip(assignment.keys, segments, strict=True):
                    if not self._begin(assignment, key) or not self._fill(segment, at, body, buffer):
                        break
                    at = BlobOffset(segment.extent.end)
            finally:
                self._let_go(body)
        with self._changed:
            self._attempts.pop(content.id, None)
        return [key for key in assignment.keys if self._is_missing(key)]

    def _open(self, content: Content, start: BlobOffset, end: BlobOffset) -> AbstractContextManager[Body]:
        failure: Failure | None = None
        for repository in self._source_of(content):
            try:
                return self._blobs.open_range(
                    repository, content.digest, start, end, timeout=self._stall, size=content.length
                )
            except Failure as error:
                failure = failure or error
        raise failure or Refused(f"layer {content.digest}: no volume names it")

    def _fill(self, segment: Segment, at: BlobOffset, body: Body, buffer: memoryview) -> bool:
        """False where the body, which has come to `at`, does not go on where the segment's file ends: it holds a part already."""
        with segment.writer() as writer:
            if segment.extent.start + segment.filled != at:
                return False
            while writer.remaining:
                got = body.readinto(buffer[: min(writer.remaining, BUFFER)])
                if not got:
                    raise Unreachable(
                        f"layer {content_of(segment).digest}: the registry sent {writer.remaining} bytes too few"
                    )
                try:
                    writer.append(buffer[:got])
                except OSError as error:
                    raise Failing(f"store {segment.path}: {error.strerror}", "make room, or mend the disk") from error
                self._store.on_appended(writer)
        return True

    def _on_failure(self, assignment: Assignment, failure: Failure) -> tuple[list[Key], float]:
        """What is wanted again, and after how long. Where asking again is no use, whoever waits is told."""
        segments = [segment for key in assignment.keys if (segment := self._find(key)) and not segment.is_complete]
        if self._ending or not segments:
            return [], 0.0
        unfinished = [_key(segment) for segment in segments]
        content = content_of(segments[0])
        with self._changed:
            failures, present = self._attempts.get(content.id, (0, 0))
            attempt = failures + 1 if content.present <= present else 1
            self._attempts[content.id] = attempt, content.present
        pause = pause_after(failure, attempt)
        content.last_error = failure
        if attempt == 1 or pause is None:
            log.warning("fetch content=%s segment=%d failed error=%r", content.digest, assignment.first, str(failure))
        if pause is not None:
            return unfinished, pause
        with self._changed:
            self._attempts.pop(content.id, None)
            self._plan.stop_prefetch(content.id)
        self._store.fail(segments, failure)
        return [], 0.0

    def _begin(self, assignment: Assignment, key: Key) -> bool:
        with self._changed:
            return self._plan.begin(assignment, key)

    def _hold(self, body: Body) -> None:
        with self._changed:
            if self._ending:
                raise Unreachable("the daemon is stopping")
            self._bodies.add(body)

    def _let_go(self, body: Body) -> None:
        with self._changed:
            self._bodies.discard(body)

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


#: Files below this are read whole and first by every engine: configuration, tokenizers, templates.
_SMALL = 4 << 20


def _key(segment: Segment) -> Key:
    return content_of(segment).id, segment.number
