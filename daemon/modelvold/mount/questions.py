"""What the kernel asks, and what it is answered: one event is taken, noted, and answered, in this order, whatever happens between.

An event that count, or its asker, makes no question of ours is answered at once, and needs no note.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from modelvold import points
from modelvold.linux import fanotify, mounts
from modelvold.linux.fanotify import Event
from modelvold.mount.pending import Note, Pending
from modelvold.mount.waits import Waiting
from modelvold.points import Point

log = logging.getLogger(__name__)


class Questions:
    """Of one group, whose descriptor and notes become ours. `group` may be polled."""

    def __init__(self, group: int, pending: Pending) -> None:
        self.group = group
        self.pending = pending
        self.denied = 0

    def take(self) -> Event | None:
        """The next event, None if there is none. Raises OSError where the kernel could not hand it over, and has denied it."""
        event = fanotify.take(self.group, self.pending.room)
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

    def left(self) -> list[Note]:
        return self.pending.notes()

    def answer(self, reads: Iterable[Waiting], *, is_allowed: bool) -> None:
        """The answer first, then the note, then the close: a number that is closed unanswered, or with its note still there, could
        be given to another read."""
        for read in reads:
            try:
                (fanotify.allow if is_allowed else fanotify.deny)(self.group, read.fd)
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
        fanotify.mark_mount(self.group, mount)

    def guard_files(self, files: Iterable[Path]) -> None:
        self.pending.guard_files()
        for file in files:
            fanotify.mark_file(self.group, file)

    def close(self) -> None:
        os.close(self.group)
        self.pending.close()
