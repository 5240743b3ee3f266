"""What is asked at the gate, and answered: by the kernel itself, through fanotify. One event is taken, noted, and answered, in this
order, whatever happens between.

An event that count, or its asker, makes no question of ours is answered at once, and needs no note.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from modelvold import points
from modelvold.linux import fanotify, mounts
from modelvold.linux.fanotify import Event
from modelvold.mount.handover import Handover
from modelvold.mount.pending import Note, Pending
from modelvold.mount.waits import Waiting
from modelvold.points import Point
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


class Questions(Protocol):
    """Who asks the gate. Segments are asked about but for those that are silenced."""

    @property
    def descriptor(self) -> int:
        """Readable when there is something to take."""
        ...

    @property
    def denied(self) -> int:
        """Reads that were denied."""
        ...

    @property
    def is_inherited(self) -> bool:
        """Whether the asker knows which segments a former daemon had silenced."""
        ...

    def open(self) -> list[Note]:
        """Those who wait since a former daemon's time."""
        ...

    def take(self) -> Event | None:
        """The next question, None if there is none. Raises OSError where one was lost, and denied."""
        ...

    def note(self, event: Event) -> tuple[int, Waiting]:
        """The inode that it is about, and the read. Inode 0: it is to be allowed."""
        ...

    def forget_taken(self) -> None:
        """The one taken last was noted or answered."""

    def answer(self, reads: Iterable[Waiting], *, is_allowed: bool) -> None: ...

    def silence(self, segment: Segment) -> None:
        """It is read without asking from now on. Raises OSError."""

    def ask_again(self, segment: Segment) -> None:
        """No more. Raises OSError."""

    def on_lost(self, segments: Sequence[Segment]) -> None:
        """They were truncated, or are not to be had: what was allowed of them is allowed no more."""

    def close(self, left: Sequence[Waiting]) -> None:
        """Nobody answers any more. `left` wait still."""


class KernelQuestions:
    """The kernel's, of a group of its own or the one that `handover` has from a former daemon; what is left at the end it keeps for
    the next one, where it can."""

    def __init__(self, handover: Handover | None = None) -> None:
        self._handover = handover
        self.descriptor = -1
        self.denied = 0

    @property
    def is_inherited(self) -> bool:
        return self._handover is not None and self._handover.is_continued

    def open(self) -> list[Note]:
        opened = self._handover.open() if self._handover else (fanotify.open_group(), Pending())
        self.descriptor, self.pending = opened
        return self.pending.notes()

    def take(self) -> Event | None:
        """The next event, None if there is none. Raises OSError where the kernel could not hand it over, and has denied it."""
        event = fanotify.take(self.descriptor, self.pending.room)
        if event is not None:
            points.at(Point.GATE_TAKEN)
        return event

    def note(self, event: Event) -> tuple[int, Waiting]:
        """The inode that it is about, and the read, noted where there was room for a note. Inode 0: it is to be allowed."""
        need, now = event.offset + event.count, time.monotonic()
        if event.count == 0 or event.pid == os.getpid():
            return 0, Waiting(event.fd, event.pid, need, now)
        inode = fanotify.inode_of(event.fd)
        slot = self.pending.note(event.fd, event.pid, inode, need)
        return inode, Waiting(event.fd, event.pid, need, now, slot)

    def forget_taken(self) -> None:
        """The event taken last was noted or answered."""
        self.pending.forget_taken()

    def answer(self, reads: Iterable[Waiting], *, is_allowed: bool) -> None:
        """The answer first, then the note, then the close: a number that is closed unanswered, or with its note still there, could
        be given to another read."""
        for read in reads:
            try:
                (fanotify.allow if is_allowed else fanotify.deny)(self.descriptor, read.fd)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):  # ENOENT: the reader was killed meanwhile
                    log.error("answer fd=%d failed error=%s", read.fd, error)  # noqa: TRY400
            finally:
                points.at(Point.GATE_ANSWERED)
                self.pending.clear(read.slot)
                os.close(read.fd)
            self.denied += not is_allowed

    def guard_mount(self, mount: Path) -> None:
        """Every read through it is asked about from now on, and whoever finds our notes knows that."""
        self.pending.guard(mounts.mount_id_unique(mount))
        fanotify.mark_mount(self.descriptor, mount)

    def guard_files(self, files: Iterable[Path]) -> None:
        self.pending.guard_files()
        for file in files:
            fanotify.mark_file(self.descriptor, file)

    def silence(self, segment: Segment) -> None:
        fanotify.ignore(self.descriptor, segment.path)

    def ask_again(self, segment: Segment) -> None:
        fanotify.unignore(self.descriptor, segment.path)

    def on_lost(self, segments: Sequence[Segment]) -> None:
        """The kernel asks about all that is not silenced, each time."""

    def close(self, left: Sequence[Waiting]) -> None:
        if self._handover and self._handover.is_kept:
            for read in left:
                os.close(read.fd)
        else:
            self.answer(left, is_allowed=False)
        os.close(self.descriptor)
        self.pending.close()
