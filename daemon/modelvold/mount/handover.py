"""From one daemon to the next: the fanotify group, and the notes of what it has not answered, in systemd's descriptor store.

While the store has the group, the kernel goes on asking and readers of missing bytes wait, whoever was killed. The next daemon

    reserve ──▶ store, probe, mounts adopted ──▶ take over ──▶ answer

first of all reserves every number that is out: an answer goes by number to whoever waited first under it, and the kernel gives
a new event the lowest number that is free. What is inherited is given up, and then its readers get EIO for missing bytes, where
it cannot be served: the private mount, the store or the layout of the notes is another, files were marked one by one (their events
would have to be answered while the store is swept), the backend is another, or the daemon cannot start.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from modelvold.linux import fanotify, mounts
from modelvold.linux.notify import Notify
from modelvold.mount.pending import Left, Pending, read_left

log = logging.getLogger(__name__)

_GROUP, _PENDING = "gate", "pending"
#: Where inherited descriptors go, out of the way of the numbers that were given out when they lay there.
_HIGH = 1000


class Handover:
    """A `with` from before anything else is opened until everything else is closed; where its block fails before the daemon was
    ready, what is kept is given up.

    `door` is the private mount, `contents` the store's folder that it shows.
    """

    def __init__(self, notify: Notify, door: Path, contents: Path) -> None:
        self._notify = notify
        self._door = door
        self._contents = contents
        self._inherited: tuple[int, int] | None = None  # group and memfd, not taken by `open` yet
        self._left = Left(0, has_marked_files=False, notes=(), taken=None)
        self._unreserved: set[int] = set()
        self._has_kept = False  # something of ours, inherited or new
        self.is_continued = False

    def __repr__(self) -> str:
        return f"<handover {'continued' if self.is_continued else 'new'} kept={self.is_kept}>"

    @property
    def is_kept(self) -> bool:
        """Whether group and notes outlive us."""
        return self._notify.is_heard

    def __enter__(self) -> Self:
        groups, memories = (self._notify.received.pop(name, []) for name in (_GROUP, _PENDING))
        if groups or memories:
            try:
                self._inherit(groups, memories)
            except OSError as error:
                self._give_up([*groups, *memories], str(error))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._has_kept and not self._notify.is_ready:
            self.give_up("the start failed")

    def open(self) -> tuple[int, Pending]:
        """The group and its notes, inherited or new; the caller's to close."""
        if self._inherited is None:
            return self._new()
        (group, memory), self._inherited = self._inherited, None
        pending = Pending(memory)
        os.close(memory)
        for note in pending.notes():
            if note.number in self._unreserved:
                pending.clear(note.slot)
        if self._left.taken and self._left.taken[0] not in self._unreserved:
            pending.note(*self._left.taken, inode=0, need=0)
        return group, pending

    def give_up(self, reason: str) -> None:
        """Nothing is kept any more, nobody waits any more."""
        inherited, self._inherited = self._inherited, None
        self._give_up(inherited or (), reason)

    def _new(self) -> tuple[int, Pending]:
        group = fanotify.open_group()
        if not self.is_kept:
            return group, Pending()
        memory = Pending.make()
        pending = Pending(memory)
        self._notify.keep(_PENDING, memory)
        self._notify.keep(_GROUP, group)
        self._has_kept = True
        os.close(memory)
        return group, pending

    def _inherit(self, groups: list[int], memories: list[int]) -> None:
        left = read_left(memories[0]) if len(groups) == len(memories) == 1 else None
        if objection := "it is not whole, or of another version" if left is None else self._objection(left):
            self._give_up([*groups, *memories], objection)
            return
        assert left  # noqa: S101 — or there was an objection
        [group], [memory] = groups, memories
        self._reserve(left.numbers - {group, memory}, group)
        self._inherited = _moved(group, left.numbers), _moved(memory, left.numbers)
        self._left = left
        self.is_continued = self._has_kept = True
        log.info("inherit group reads=%d lost=%d", len(left.notes), bool(left.taken))

    def _objection(self, left: Left) -> str:
        if left.has_marked_files:
            return "files were marked one by one"
        if left.door != mounts.mount_id_unique(self._door):
            return "the mount it guarded is gone"
        here, there = self._door.stat(), self._contents.stat()
        return "" if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else "it guarded another store"

    def _reserve(self, numbers: set[int], group: int) -> None:
        """Who waits under a number that somebody else has here is let go: it has what is there, or asks again."""
        for number in numbers:
            if _is_open(number):
                self._unreserved.add(number)
                with suppress(FileNotFoundError):
                    fanotify.allow(group, number)
            else:
                _occupy(number)

    def _give_up(self, descriptors: Iterable[int], reason: str) -> None:
        log.warning("give up group reason=%r", reason)
        self.is_continued = self._has_kept = False
        for name in (_GROUP, _PENDING):
            self._notify.drop(name)
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _occupy(number: int) -> None:
    """Nothing else gets this number until it is closed."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if null != number:
        os.dup2(null, number, inheritable=False)
        os.close(null)


def _moved(descriptor: int, numbers: set[int]) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(descriptor)
    if descriptor in numbers:
        _occupy(descriptor)
    return moved
