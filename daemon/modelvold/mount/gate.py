"""The gate: where readers ask for bytes, and wait (rule 4).

Every read of a segment is asked about here, by the kernel or by the process that serves FUSE (`mount.questions`), unless the segment is
silenced, that is, open (`Segment.is_open`). What is shown is allowed at once; what is missing is demanded, and the read waits
(`mount.waits`) until it is covered, the segment fails, or the segment's deadline passes. Of a segment that is leaving nothing is
allowed: its reads wait, and are demanded once it is truncated.

What was taken is noted before it is judged, and its note cleared after the answer (`mount.questions`): a daemon
that ends, however, leaves to the next one who waits, where there is something to leave it in (`mount.handover`).

Nothing here reads or maps a volume. The lock guards the tables and is never held over a system call.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from modelvold.errors import Failure
from modelvold.linux.fanotify import Event
from modelvold.mount.causes import Causes
from modelvold.mount.marks import Marks
from modelvold.mount.pending import Note
from modelvold.mount.port import Bytes
from modelvold.mount.questions import Questions
from modelvold.mount.waits import Waiting, Waits
from modelvold.store.content import content_of
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

#: Seconds between two rounds of the loop, at most; so often it looks what has become of those who wait.
_ROUND = 1.0
#: Events taken before the loop looks at anything else.
_MOST_AT_ONCE = 256
#: The kernel could not hand an event over (EMFILE, …): it has denied that read. Do not spin.
_PAUSE_AFTER_ERROR = 0.01


class Gate:
    """A `with` opens the questions and the thread that answers. Who still waits when it is left is the questions' to deny or to keep.

    `deadline` is how many seconds a read waits without progress. `on_round` is called by the loop whenever it has gone round, at
    least once a second.
    """

    def __init__(
        self,
        source: Bytes,
        questions: Questions,
        *,
        deadline: float,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._deadline = deadline
        self._questions = questions
        self._on_round = on_round
        self._lock = threading.Lock()  # guards the tables below
        self._watched: dict[
            int, tuple[Segment, str]
        ] = {}  # inode → segment, the volume that is charged for its waiting reads
        self._waits = Waits(deadline)
        self._left: list[Note] = []  # what a former daemon did not answer, and nobody watches yet
        self._causes = Causes()
        self._wake = -1
        self._is_guarding = False
        self._is_ending = False
        self._next_look = 0.0
        self._lost = 0  # events that the kernel could not hand over, and denied
        self._marks = Marks(questions, self._is_watched)
        self._thread = threading.Thread(target=self._run, name="gate")
        self.events = 0
        self.last_error = ""
        self.beat = time.monotonic()

    def __repr__(self) -> str:
        return f"<gate watched={len(self._watched)} {self._waits} events={self.events}>"

    @property
    def denied(self) -> int:
        """Reads that got EIO."""
        return self._lost + self._questions.denied

    def __enter__(self) -> Self:
        self._left = self._questions.open()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._lock:
            self._watched.clear()  # what the store tells from now on is no concern of ours
        self._questions.close(self._abandoned())
        os.close(self._wake)

    # -- what is guarded

    def guard(self) -> None:
        """From now on questions are taken, and judged by what is watched."""
        with self._lock:
            nobodys, self._left = self._left, []
        self._questions.answer([_waiting(note, 0.0) for note in nobodys], is_allowed=True)
        self._is_guarding = True
        os.eventfd_write(self._wake, 1)

    def watch(self, volume: str, segments: Sequence[Segment]) -> None:
        """Before a volume is mounted, and before an adopted one is guarded: its events are known, its open segments silent. Who
        waits for them since a former daemon's time is served."""
        with self._lock:
            for segment in segments:
                known, _ = self._watched.get(segment.inode, (None, ""))
                if known is not segment:  # or the inode was a removed content's
                    self._watched[segment.inode] = (segment, volume)
        is_inherited = self._questions.is_inherited
        for segment in segments:
            if segment.is_open or is_inherited:  # no other is silenced
                self._marks.settle(segment)
        self._adopt(segments)

    def unwatch(self, segments: Sequence[Segment]) -> None:
        """After the last volume that has these was unmounted. What had no bytes, nor lost any meanwhile, has no ignore mark."""
        left: list[Waiting] = []
        empty = {segment: segment.generation for segment in segments if not segment.present}
        with self._lock:
            for segment in segments:
                self._watched.pop(segment.inode, None)
                left += self._waits.drop(segment)  # reads whose reader was killed
        self._questions.answer(left, is_allowed=False)
        for segment in segments:
            if segment.present or segment.generation != empty.get(segment):
                self._marks.settle(segment)

    def withdraw(self, number: int) -> None:
        """Whoever asked under this number waits no more. Its segment is fetched for others, if for anybody."""
        with self._lock:
            segment = self._waits.withdraw(number)
        if segment is not None:
            self._release(segment)

    def forget_waiting(self) -> None:
        """Whoever asked has ended, or asks again."""
        with self._lock:
            self._waits.take_all()

    def waiting(self, segments: Sequence[Segment]) -> list[Waiting]:
        """The reads that wait for any of these, oldest first."""
        with self._lock:
            reads = self._waits.reads({segment.inode for segment in segments})
        return sorted(reads, key=lambda read: read.since)

    # -- what the store tells (store.Watcher)

    def on_grown(self, segment: Segment) -> None:
        with self._lock:
            covered = self._waits.covered(segment)
        self._questions.answer(covered, is_allowed=True)

    def on_durable(self, segments: Sequence[Segment]) -> None:
        """Silences them: from now on the kernel reads them alone."""
        for segment in segments:
            if self._is_watched(segment):
                self._marks.settle(segment)

    def on_leaving(self, segments: Sequence[Segment]) -> None:
        """Raises OSError where one cannot be asked about again: then it must not be truncated."""
        for segment in segments:
            if self._is_watched(segment):
                self._marks.ask(segment)

    def on_missing(self, segments: Sequence[Segment]) -> None:
        """Who waits since they were leaving was demanded in vain: they were complete then."""
        now = time.monotonic()
        with self._lock:
            awaited = [segment for segment in segments if self._waits.start_over(segment, now)]
            watched = [segment for segment in segments if segment.inode in self._watched]
        self._questions.on_lost(watched)
        for segment in awaited:
            self._source.demand(segment)

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        now = time.monotonic()
        with self._lock:
            known = [(self._watched[s.inode][1], s) for s in segments if s.inode in self._watched and not s.leaving]
            reads = [read for volume, segment in known for read in self._waits.fail(segment, volume, now)]
        self._questions.on_lost([segment for _, segment in known])
        self._deny(reads, str(failure))

    # -- the loop

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        is_polled = False
        while not self._is_ending:
            if self._is_guarding and not is_polled:
                poll.register(self._questions.descriptor, select.POLLIN)
                is_polled = True
            poll.poll(self._patience())
            self.beat = time.monotonic()
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if self._is_guarding:
                self._take_events()
            self._look()
            self._on_round()

    def _patience(self) -> int:
        """Milliseconds until the loop must go round again."""
        with self._lock:
            nearest = self._waits.next_deadline()
        return int(1000 * min(_ROUND, max(0.0, nearest - time.monotonic())))

    def _take_events(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            if self._is_ending:
                return
            try:
                event = self._questions.take()
            except OSError as error:
                self._lost += 1
                self.last_error = f"an event was lost, its read denied: {error.strerror}"
                self._causes.tell("lose events", str(error), 0, 1)
                time.sleep(_PAUSE_AFTER_ERROR)
                return
            if event is None:
                return
            self.events += 1
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        """Noted first: whatever happens next, somebody will answer it."""
        read = Waiting(event.fd, event.pid, 0, 0.0)
        try:
            inode, read = self._questions.note(event)
            verdict = self._verdict(inode, read) if inode else True
        except Exception as error:  # a loop that ends leaves every reader waiting for ever
            log.exception("event pid=%d failed", event.pid)
            self.last_error = f"an event could not be judged: {error}"
            verdict = False if self._is_unheard(event.fd) else None
        if verdict is not None:
            self._questions.answer([read], is_allowed=verdict)
        self._questions.forget_taken()

    def _verdict(self, inode: int, read: Waiting) -> bool | None:
        """True: go on. False: EIO. None: it waits."""
        with self._lock:
            segment, volume = self._watched.get(inode, (None, ""))
            if segment is None:
                return True  # no volume of ours: what is there is there, what is not is EIO
            segment.touched = read.since
            if segment.shown >= min(read.need, segment.padded):
                return True
            if self._waits.is_cooling(segment, read.since):
                return False
            if self._waits.is_full(volume) or read.slot < 0:
                self.last_error = f"too many reads wait, of volume {volume} or of all: one more was denied"
                return False
            self._waits.add(segment, volume, _clipped(read, segment))
        self._fetch(segment)
        return None

    def _fetch(self, segment: Segment) -> None:
        """Of one that somebody waits for. A demand for one that is leaving would be in vain, or worse: it begins what cannot be
        written. `on_missing` comes after the truncation, and finds who waits."""
        if not segment.leaving:
            self._source.demand(segment)
        self.on_grown(segment)  # the bytes may have come before there was an entry in the list: nobody else would tell

    def _is_unheard(self, fd: int) -> bool:
        """Whether no list holds the read, so that nobody else will answer it."""
        with self._lock:
            return all(read.fd != fd for read in self._waits.reads(set(self._watched)))

    def _look(self) -> None:
        now = time.monotonic()
        covered: list[Waiting] = []
        with self._lock:
            if now >= self._next_look:
                self._next_look = now + _ROUND
                covered = self._waits.look(now)
            late = self._waits.late(now)
        self._questions.answer(covered, is_allowed=True)
        denied: dict[str, list[int]] = {}  # reads of each segment, by reason
        for segment, reads in late:
            reason = self._reason(segment)
            denied.setdefault(reason, []).append(len(reads))
            self._deny(reads, reason)
            self._release(segment)
        for reason, counts in denied.items():
            self._causes.tell("deny reads", reason, len(counts), sum(counts))

    def _release(self, segment: Segment) -> None:
        self._source.release(segment)
        with self._lock:
            is_waited_for = self._waits.is_waited_for(segment)
        if is_waited_for:  # somebody who came meanwhile, whose demand was released too
            self._fetch(segment)

    def _reason(self, segment: Segment) -> str:
        cause = segment.failure or content_of(segment).last_error
        return f"no progress for {self._deadline:g} s" + (f"; last: {cause}" if cause else "")

    def _is_watched(self, segment: Segment) -> bool:
        with self._lock:
            return segment.inode in self._watched

    # -- those who wait

    def _adopt(self, segments: Sequence[Segment]) -> None:
        """The reads of a former daemon's time that wait for these: their deadlines begin anew."""
        by_inode = {segment.inode: segment for segment in segments}
        now = time.monotonic()
        with self._lock:
            ours = [note for note in self._left if note.inode in by_inode]
            self._left = [note for note in self._left if note.inode not in by_inode]
            for note in ours:
                segment = by_inode[note.inode]
                _, volume = self._watched[note.inode]
                self._waits.add(segment, volume, _clipped(_waiting(note, now), segment))
        for inode in dict.fromkeys(note.inode for note in ours):
            self._fetch(by_inode[inode])

    def _abandoned(self) -> list[Waiting]:
        with self._lock:
            left, self._left = self._left, []
            return self._waits.take_all() + [_waiting(note, 0.0) for note in left]

    def _deny(self, reads: Sequence[Waiting], reason: str) -> None:
        if reads:
            self.last_error = f"{len(reads)} reads denied: {reason}"
        self._questions.answer(reads, is_allowed=False)


def _waiting(note: Note, since: float) -> Waiting:
    return Waiting(note.number, note.pid, note.need, since, note.slot)


def _clipped(read: Waiting, segment: Segment) -> Waiting:
    """Nothing behind the segment's end can be waited for."""
    return Waiting(read.fd, read.pid, min(read.need, segment.padded), read.since, read.slot)
