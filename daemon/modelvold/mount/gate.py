"""The gate: where the kernel asks for bytes, and waits (rule 4).

Every read that EROFS makes of a segment through the store's private mount raises an event here, unless the segment has an ignore
mark, that is, is durable. What is present is allowed at once; what is missing is demanded, and the read waits in its segment's
list until it is covered, the segment fails, or the segment's deadline passes. A deadline is one for a segment, from its first
waiting read, moved by every byte of progress; once passed, its reads are denied at once for a cool-down, because the kernel asks
up to four times for one access.

Nothing here reads or maps a volume. The lock guards the tables and is never held over a system call.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from modelvold.errors import Failure
from modelvold.linux import fanotify
from modelvold.linux.fanotify import Event
from modelvold.mount.port import Bytes
from modelvold.store.content import content_of
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

#: How long reads of a segment that failed are denied without asking again, seconds.
COOL_DOWN = 5.0
#: Reads of one volume that may wait: each is a descriptor of ours, and they must not starve other volumes.
MOST_WAITING = 4096
#: The kernel could not hand an event over (EMFILE, …): it has denied that read. Do not spin.
_PAUSE_AFTER_ERROR = 0.01


@dataclass(frozen=True, slots=True)
class Waiting:
    """A read that waits: `need` is how long the segment file must be for it, `since` on the monotonic clock."""

    fd: int
    pid: int
    need: int
    since: float


@dataclass(slots=True)
class _Queue:
    """The waiting reads of one segment. `until` is its deadline, or, where it has failed, the end of the cool-down."""

    segment: Segment
    volume: str
    reads: list[Waiting] = field(default_factory=list)
    until: float = 0.0
    cooling: bool = False


class Gate:
    """A `with` opens the fanotify group and the thread that answers; leaving denies whoever still waits.

    `deadline` is how many seconds a read waits without a byte of progress.
    """

    def __init__(self, source: Bytes, *, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self._lock = threading.Lock()  # guards the tables below
        self._watched: dict[
            int, tuple[Segment, str]
        ] = {}  # inode → segment, the volume that is charged for its waiting reads
        self._queues: dict[int, _Queue] = {}
        self._waiting: dict[str, int] = {}
        self._group = -1
        self._wake = -1
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="gate")
        self.events = 0
        self.denied = 0
        self.last_error = ""
        self.beat = time.monotonic()

    def __enter__(self) -> Self:
        self._group = fanotify.open_group()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._group)
        os.close(self._wake)

    # -- what is guarded

    def guard_mount(self, mount: Path) -> None:
        """From now on every read through this mount is asked about."""
        fanotify.mark_mount(self._group, mount)

    def guard_files(self, segments: Iterable[Segment]) -> None:
        """For volumes whose segments were opened through a mount that is lost: one mark each."""
        for segment in segments:
            fanotify.mark_file(self._group, segment.path)

    def watch(self, volume: str, segments: Sequence[Segment]) -> None:
        """Before a volume is mounted, and before an adopted one is guarded: its events are known, its durable segments silent."""
        with self._lock:
            for segment in segments:
                self._watched.setdefault(segment.inode, (segment, volume))
        self.on_durable([segment for segment in segments if segment.durable])

    def unwatch(self, segments: Sequence[Segment]) -> None:
        """After the last volume that has these was unmounted."""
        left: list[Waiting] = []
        with self._lock:
            for segment in segments:
                self._watched.pop(segment.inode, None)
                queue = self._queues.pop(segment.inode, None)
                if queue is not None:  # reads whose reader was killed
                    left += queue.reads
                    self._let_go(queue, len(queue.reads))
        self._answer(left, is_allowed=False)
        for segment in segments:
            try:
                self._mark(fanotify.unignore, segment)
            except OSError as error:
                log.warning("unignore segment=%s failed error=%s", segment.path, error)

    def waiting(self, segments: Sequence[Segment]) -> list[Waiting]:
        """The reads that wait for any of these, oldest first."""
        inodes = {segment.inode for segment in segments}
        with self._lock:
            reads = [read for inode, queue in self._queues.items() if inode in inodes for read in queue.reads]
        return sorted(reads, key=lambda read: read.since)

    # -- what the store tells (store.Watcher)

    def on_grown(self, segment: Segment) -> None:
        with self._lock:
            queue = self._queues.get(segment.inode)
            if queue is None:
                return
            covered = [read for read in queue.reads if read.need <= segment.present]
            queue.reads = [read for read in queue.reads if read.need > segment.present]
            queue.until = time.monotonic() + self._deadline
            queue.cooling = False
            self._let_go(queue, len(covered))
        self._answer(covered, is_allowed=True)

    def on_durable(self, segments: Sequence[Segment]) -> None:
        """Silences them: from now on the kernel reads them alone."""
        with self._lock:
            watched = [segment for segment in segments if segment.inode in self._watched]
        for segment in watched:
            try:
                self._mark(fanotify.ignore, segment)
            except OSError as error:  # it costs events, no byte; a content removed meanwhile has no file any more
                log.warning("ignore segment=%s failed error=%s", segment.path, error)

    def on_withdrawn(self, segments: Sequence[Segment]) -> None:
        with self._lock:
            watched = [segment for segment in segments if segment.inode in self._watched]
        for segment in watched:
            self._mark(fanotify.unignore, segment)

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        for segment in segments:
            self._fail(segment, str(failure))

    # -- the loop

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._ending:
            poll.poll(self._next_deadline())
            self.beat = time.monotonic()
            self._take_events()
            self._expire()
        with self._lock:
            left = [read for queue in self._queues.values() for read in queue.reads]
            self._queues.clear()
            self._waiting.clear()
        self._answer(left, is_allowed=False)

    def _next_deadline(self) -> int:
        """Milliseconds; a second at most, so that `beat` shows that the loop lives."""
        with self._lock:
            nearest = min((queue.until for queue in self._queues.values() if queue.reads), default=float("inf"))
        return int(1000 * min(1.0, max(0.0, nearest - time.monotonic())))

    def _take_events(self) -> None:
        try:
            for event in fanotify.read_events(self._group):
                self.events += 1
                self._on_event(event)
        except OSError as error:
            self.denied += 1
            self.last_error = f"an event was lost, its read denied: {error.strerror}"
            log.error("take events failed error=%s", error)  # noqa: TRY400 — the loop must go on
            time.sleep(_PAUSE_AFTER_ERROR)

    def _on_event(self, event: Event) -> None:
        try:
            verdict = self._verdict(event)
        except Exception as error:  # a loop that ends leaves every reader waiting for ever
            log.exception("event pid=%d failed", event.pid)
            self.last_error = f"an event could not be judged: {error}"
            verdict = False if self._is_unheard(event.fd) else None
        if verdict is not None:
            self._answer([Waiting(event.fd, event.pid, 0, 0.0)], is_allowed=verdict)

    def _is_unheard(self, fd: int) -> bool:
        """Whether no list holds the read, so that nobody else will answer it."""
        with self._lock:
            return all(read.fd != fd for queue in self._queues.values() for read in queue.reads)

    def _mark(self, change: Callable[[int, Path], None], segment: Segment) -> None:
        """Once more where a content moved to the shared place between our naming and the kernel's look."""
        try:
            change(self._group, segment.path)
        except FileNotFoundError:
            time.sleep(_PAUSE_AFTER_ERROR)
            change(self._group, segment.path)

    def _verdict(self, event: Event) -> bool | None:
        """True: go on. False: EIO. None: it waits."""
        if event.count == 0 or event.pid == os.getpid():
            return True
        inode = os.fstat(event.fd).st_ino
        with self._lock:
            segment, volume = self._watched.get(inode, (None, ""))
            if segment is None:
                return True  # no volume of ours: what is there is there, what is not is EIO
            need = min(event.offset + event.count, segment.padded)
            if segment.present >= need:
                return True
            queue = self._queues.setdefault(inode, _Queue(segment, volume))
            if queue.cooling and time.monotonic() < queue.until:
                return False
            if self._waiting.get(volume, 0) >= MOST_WAITING:
                self.last_error = f"{MOST_WAITING} reads of volume {volume} wait: the next one was denied"
                return False
            if not queue.reads:
                queue.until = time.monotonic() + self._deadline
            queue.cooling = False
            queue.reads.append(Waiting(event.fd, event.pid, need, time.monotonic()))
            self._waiting[volume] = self._waiting.get(volume, 0) + 1
        self._source.demand(segment)
        self._recheck(segment, need)
        return None

    def _recheck(self, segment: Segment, need: int) -> None:
        """The bytes may have come between the look at the size and the entry in the list: then nobody else will tell."""
        if segment.present >= need:
            self.on_grown(segment)

    def _expire(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [queue.segment for queue in self._queues.values() if queue.reads and queue.until <= now]
        for segment in late:
            cause = segment.failure or content_of(segment).last_error
            reason = f"no byte for {self._deadline:g} s" + (f"; last: {cause}" if cause else "")
            log.warning("deadline passed segment=%s/%d reason=%r", content_of(segment).digest, segment.number, reason)
            self._fail(segment, reason)
            self._source.release(segment)

    def _fail(self, segment: Segment, reason: str) -> None:
        with self._lock:
            if segment.inode not in self._watched:
                return
            queue = self._queues.setdefault(segment.inode, _Queue(segment, self._watched[segment.inode][1]))
            reads, queue.reads = queue.reads, []
            queue.cooling, queue.until = True, time.monotonic() + COOL_DOWN
            self._let_go(queue, len(reads))
        if reads:
            self.last_error = f"{len(reads)} reads of {content_of(segment).digest} denied: {reason}"
        self._answer(reads, is_allowed=False)

    def _let_go(self, queue: _Queue, count: int) -> None:
        self._waiting[queue.volume] = self._waiting.get(queue.volume, 0) - count

    def _answer(self, reads: Iterable[Waiting], *, is_allowed: bool) -> None:
        """The answer first, then the close: a number that is closed unanswered could be given to another read."""
        for read in reads:
            try:
                (fanotify.allow if is_allowed else fanotify.deny)(self._group, read.fd)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):  # ENOENT: the reader was killed meanwhile
                    log.error("answer fd=%d failed error=%s", read.fd, error)  # noqa: TRY400
            finally:
                os.close(read.fd)
            self.denied += not is_allowed
