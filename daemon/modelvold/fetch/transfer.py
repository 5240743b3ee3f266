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
from modelvold.store.segment import Segment, Writer
from modelvold.store.store import Store

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Body(Protocol):
    @property
    def host(self) -> str: ...

    @property
    def ahead(self) -> int: ...

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
        takes_whole: bool,
    ) -> AbstractContextManager[Body]: ...

    def hosts(self, repository: Repository) -> AbstractSet[str]:
        """Who may be asked, as `Body.host` names them."""
        ...


class Task(Protocol):
    """What a transfer is told by whoever has it done."""

    def opened(self, body: Body, /) -> None: ...

    def begin(self, segment: Segment, /) -> bool:
        """Whether the segment is this transfer's to fill."""
        ...

    def goes_on(self) -> bool:
        """Asked before more is read; may wait. False: to end here."""
        ...

    def piece(self, most: int, /) -> int:
        """How many bytes to read at once, at most `most`."""
        ...

    def note(self, count: int, /) -> None:
        """So many bytes have come."""
        ...


class RangelessError(Exception):
    """The registry sends a blob from its first byte whatever is asked for."""


class RangedError(Exception):
    """What was to be a stream came from a host that knows ranges."""


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
        self,
        segments: Sequence[Segment],
        task: Task,
        buffer: memoryview,
        *,
        is_read: bool,
        slow: AbstractSet[str] = frozenset(),
        is_stream: bool = False,
    ) -> bool:
        """Fills adjacent segments of one content, in order, for as long as `task` says. False where the bytes were wrong, and another
        host is to be asked.

        `is_read`: somebody waits, or reads right behind it. `slow` hosts are asked only where no other has it. `is_stream`: from the
        content's first byte, past what is here already; RangelessError where that turns out to be the only way, RangedError where it is
        not. Raises Failure.
        """
        content = content_of(segments[0])
        if content.state == "quarantined":
            raise Mismatch(f"layer {content.digest}: {content.reason}", "remove the model with `modelvold rm`")
        self._store.check()
        with self._store.room.taken(segments, is_read=is_read):
            missing = [segment for segment in segments if not segment.is_complete]
            return not missing or self._run(content, missing, task, buffer, slow, is_stream=is_stream)

    def _run(
        self,
        content: Content,
        segments: Sequence[Segment],
        task: Task,
        buffer: memoryview,
        slow: AbstractSet[str],
        *,
        is_stream: bool,
    ) -> bool:
        start = BlobOffset(segments[0].extent.start + segments[0].filled)
        with self._open(content, start, BlobOffset(segments[-1].extent.end), slow) as body:
            points.at(Point.FETCH_OPENED)
            if body.ahead and not is_stream:
                raise RangelessError
            if is_stream and start > 0 and not body.ahead:
                raise RangedError
            self._hold(body)
            task.opened(body)
            try:
                self._fill_all(segments, start - body.ahead, body, task, buffer, is_stream=is_stream)
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

    def _open(
        self, content: Content, start: BlobOffset, end: BlobOffset, slow: AbstractSet[str]
    ) -> AbstractContextManager[Body]:
        failures: list[Failure] = []
        for repository in self._sources_of(content):
            avoid = frozenset(content.suspects)
            if slow and self._hosts(repository) - avoid - slow:
                avoid |= slow
            try:
                return self._blobs.open_range(
                    repository,
                    content.digest,
                    start,
                    end,
                    timeout=self._stall,
                    size=content.length,
                    avoid=avoid,
                    takes_whole=True,
                )
            except Failure as failure:
                failures.append(failure)
        if not failures:
            raise NotFound(f"layer {content.digest}: no volume names it")
        raise most_hopeful(failures)

    def _fill_all(
        self, segments: Sequence[Segment], at: int, body: Body, task: Task, buffer: memoryview, *, is_stream: bool
    ) -> None:
        """`at`: where in the content the body begins. What it cannot go on with, since a part is here already, it leaves; but for a
        stream, which passes over that."""
        for segment in segments:
            if not task.begin(segment):
                if is_stream:
                    continue
                return
            with self._store.writing(segment) as writer:
                known = segment.extent.start + segment.filled - at
                if known < 0 or (known and not is_stream) or not self._pass_over(known, body, task, buffer):
                    return
                segment.hosts = tuple({*segment.hosts, body.host})
                if not self._fill(writer, body, task, buffer):
                    return
            at = segment.extent.end

    def _pass_over(self, count: int, body: Body, task: Task, buffer: memoryview) -> bool:
        """Reads what is here already. False where it is to end before that."""
        while count:
            got = self._read(min(count, len(buffer)), body, task, buffer)
            if not got:
                return False
            count -= got
        return True

    def _fill(self, writer: Writer, body: Body, task: Task, buffer: memoryview) -> bool:
        """Appends what comes until it is complete. False where it is to end before that."""
        while writer.remaining:
            got = self._read(min(writer.remaining, len(buffer)), body, task, buffer)
            if not got:
                return False
            try:
                writer.append(buffer[:got])
            except OSError as error:
                raise _of_disk(writer.segment, error) from error
            self._store.on_appended(writer, buffer[:got])
        return True

    def _read(self, most: int, body: Body, task: Task, buffer: memoryview) -> int:
        """How many bytes there are in `buffer` now; 0 where it is to end."""
        if not task.goes_on():
            return 0
        got = body.readinto(buffer[: task.piece(most)])
        if not got:
            raise Unreachable(f"{body.host}: the registry sent too few bytes")
        task.note(got)
        return got

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
