"""What the process that serves FUSE asks at the gate: its reads that wait, by numbers of our own.

A process that has ended, or whose connection has, asks no more: what it asked is answered to nobody. On the next connection it asks
again for every read that still waits.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from modelvold.linux.fanotify import Event
from modelvold.mount.fuse.link import Link
from modelvold.mount.fuse.wire import ALL, Answer, Ask
from modelvold.mount.pending import Note
from modelvold.mount.waits import Waiting
from modelvold.store.segment import Segment


class FuseQuestions:
    """See `mount.questions.Questions`. Segments are told to the link that is `joined`; until one is, nobody asks."""

    is_inherited = False

    def __init__(self) -> None:
        #: Is told of a read that waits no more, by our number.
        self.on_withdrawn: Callable[[int], None] = lambda _: None
        self.descriptor = -1
        self.denied = 0
        self._link: Link | None = None
        self._lock = threading.Lock()  # guards _asked and _number
        self._number = 0
        self._asked: dict[int, Ask] = {}  # not answered yet, by our own number
        self._untaken: deque[int] = deque()

    def open(self) -> list[Note]:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return []

    def close(self, left: Sequence[Waiting]) -> None:
        """Those wait on, for the next daemon, as long as the process lets them."""
        self.part()
        os.close(self.descriptor)

    def join(self, link: Link) -> None:
        self._link = link

    def part(self) -> None:
        """The link has ended."""
        self._link = None
        with self._lock:
            self._asked.clear()
            self._untaken.clear()

    def on_ask(self, ask: Ask) -> None:
        """Called by the link's thread."""
        with self._lock:
            self._number += 1
            self._asked[self._number] = ask
            self._untaken.append(self._number)
        os.eventfd_write(self.descriptor, 1)

    def on_withdraw(self, theirs: int) -> None:
        """Likewise. `theirs` is the process's number."""
        with self._lock:
            number = next((number for number, ask in self._asked.items() if ask.number == theirs), None)
            if number is None:  # it is answered by now
                return
            del self._asked[number]
        self.on_withdrawn(number)

    def take(self) -> Event | None:
        with self._lock:
            while self._untaken:
                number = self._untaken.popleft()
                if ask := self._asked.get(number):
                    return Event(number, ask.pid, 0, ask.need)
            with suppress(BlockingIOError):
                os.eventfd_read(self.descriptor)
            return None

    def note(self, event: Event) -> tuple[int, Waiting]:
        with self._lock:
            ask = self._asked.get(event.fd)
        now = time.monotonic()
        return (ask.inode if ask else 0), Waiting(event.fd, event.pid, event.count, now, slot=0)

    def forget_taken(self) -> None:
        """It is among those asked until it is answered."""

    def answer(self, reads: Iterable[Waiting], *, is_allowed: bool) -> None:
        answers = []
        with self._lock:
            for read in reads:
                ask = self._asked.pop(read.fd, None)
                if ask is not None:
                    answers.append(Answer(ask.number, ask.need if is_allowed else 0, is_allowed))
        if not is_allowed:
            self.denied += len(answers)
        link = self._link
        if link is not None and answers:
            link.answer(answers)

    def silence(self, segment: Segment) -> None:
        self.tell([(segment.inode, ALL)])

    def ask_again(self, segment: Segment) -> None:
        self.tell([(segment.inode, 0)])

    def on_lost(self, segments: Sequence[Segment]) -> None:
        """Once more: an answer that was given while they left may have come after that."""
        self.tell([(segment.inode, 0) for segment in segments])

    def tell(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `wire.Shown`."""
        link = self._link
        if link is not None and pairs:
            link.tell_shown(pairs)
