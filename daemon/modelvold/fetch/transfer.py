"""Transfers: one range of a blob, asked for and appended, segment after segment."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import Protocol

from modelvold import points
from modelvold.errors import Exhausted, Failing, Failure, Mismatch, NotFound, Unreachable
from modelvold.fetch.retry import most_hopeful
from modelvold.layer.extent import BlobOffset
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.points import Point
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment
from modelvold.store.store import Store

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Body(Protocol):
    @property
    def host(self) -> str: ...

    def readinto(self, buffer: memoryview, /) -> int: ...

    def abort(self) -> None: ...


class Blobs(Protocol):
    """Where bytes come from: the registry's client."""

    def open_range(
        self,
        repository: Repository,
        digest: Digest,
        start: BlobOffset,
        end: BlobOffset,
        *,
        timeout: float,
        size: int,
        avoid: AbstractSet[str],
    ) -> AbstractContextManager[Body]: ...

    def hosts(self, repository: Repository) -> AbstractSet[str]:
        """Who may be asked, as `Body.host` names them."""
        ...


class Transfers:
    """Thread-safe. `sources_of(content)` names the repositories a content may be fetched from, best first; `stall` is how many seconds
    without a byte end a transfer."""

    def __init__(
        self, store: Store, blobs: Blobs, sources_of: Callable[[Content], Sequence[Repository]], stall: float
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._sources_of = sources_of
        self._stall = stall
        self._lock = threading.Lock()  # guards the two below
        self._bodies: set[Body] = set()
        self._is_ending = False

    def stop(self) -> None:
        """Ends those whose bodies come, with Unreachable, and all later ones."""
        with self._lock:
            self._is_ending = True
            bodies = list(self._bodies)
        for body in bodies:
            body.abort()

    def run(
        self, segments: Sequence[Segment], begin: Callable[[Segment], bool], buffer: memoryview, *, is_demand: bool
    ) -> bool:
        """Fills adjacent segments of one content, in order, for as long as `begin` says that the next one is this transfer's to fill.

        False where the bytes were wrong, and another host is to be asked. Raises Failure.
        """
        content = content_of(segments[0])
        if content.state == "quarantined":
            raise Mismatch(f"layer {content.digest}: {content.reason}", "remove the model with `modelvold rm`")
        self._store.check()
        with self._store.room.taken(segments, is_demand=is_demand):
            return self._run(content, segments, begin, buffer)

    def _run(
        self, content: Content, segments: Sequence[Segment], begin: Callable[[Segment], bool], buffer: memoryview
    ) -> bool:
        start = BlobOffset(segments[0].extent.start + segments[0].filled)
        with self._open(content, start, BlobOffset(segments[-1].extent.end)) as body:
            points.at(Point.FETCH_OPENED)
            self._hold(body)
            try:
                self._fill_all(segments, start, body, begin, buffer)
            except Mismatch:
                if not self.has_another(content):
                    raise
                log.warning("fetch content=%s again avoid=%s", content.digest, ",".join(sorted(content.suspects)))
                return False
            finally:
                self._let_go(body)
        return True

    def has_another(self, content: Content) -> bool:
        """Whether some host may have the content that is no suspect of having sent wrong bytes of it."""
        return any(self._hosts(repository) - content.suspects for repository in self._sources_of(content))

    def _hosts(self, repository: Repository) -> AbstractSet[str]:
        """Where hosts.toml cannot be read just now, one that we do not know."""
        try:
            return self._blobs.hosts(repository)
        except Failure:
            return {""}

    def _open(self, content: Content, start: BlobOffset, end: BlobOffset) -> AbstractContextManager[Body]:
        failures: list[Failure] = []
        for repository in self._sources_of(content):
            try:
                return self._blobs.open_range(
                    repository,
                    content.digest,
                    start,
                    end,
                    timeout=self._stall,
                    size=content.length,
                    avoid=frozenset(content.suspects),
                )
            except Failure as failure:
                failures.append(failure)
        if not failures:
            raise NotFound(f"layer {content.digest}: no volume names it")
        raise most_hopeful(failures)

    def _fill_all(
        self,
        segments: Sequence[Segment],
        start: BlobOffset,
        body: Body,
        begin: Callable[[Segment], bool],
        buffer: memoryview,
    ) -> None:
        at = start
        for segment in segments:
            if not begin(segment) or not self._fill(segment, at, body, buffer):
                return
            at = BlobOffset(segment.extent.end)

    def _fill(self, segment: Segment, at: BlobOffset, body: Body, buffer: memoryview) -> bool:
        """False where the body, which has come to `at`, does not go on where the segment's file ends: it holds a part already."""
        with self._store.writing(segment) as writer:
            if segment.extent.start + segment.filled != at:
                return False
            segment.hosts = tuple({*segment.hosts, body.host})
            while writer.remaining:
                got = body.readinto(buffer[: min(writer.remaining, len(buffer))])
                if not got:
                    raise Unreachable(f"layer {content_of(segment).digest}: the registry sent too few bytes")
                try:
                    writer.append(buffer[:got])
                except OSError as error:
                    raise _of_disk(segment, error) from error
                self._store.on_appended(writer)
        return True

    def _hold(self, body: Body) -> None:
        with self._lock:
            if self._is_ending:
                raise Unreachable("the daemon is stopping")
            self._bodies.add(body)

    def _let_go(self, body: Body) -> None:
        with self._lock:
            self._bodies.discard(body)


def _of_disk(segment: Segment, error: OSError) -> Failure:
    what = f"store {segment.path}: {error.strerror}"
    if error.errno in _FULL:
        return Exhausted(what, "make room: `modelvold gc`, `modelvold rm`, or another disk")
    return Failing(what, "mend the disk")
