"""What the gate has taken from the kernel and not answered yet, in memory that may outlive it.

An event is answered by its number, by whoever holds the group: so a note of every number that is out is all that a next daemon
needs. Where a descriptor store keeps the group, these notes lie in a memfd beside it; else in memory of our own.

    0    version of this layout
    8    the private mount that the group's mark is on (its unique number), 0 before there is one
    16   1 once files are marked one by one
    24   how many notes there have been at one time: behind so many, none was ever written
    64   the event taken last, as the kernel wrote it: nobody needs to live on for that
    128  notes, three words each: inode, how long the file must be, and pid and number in one

A note's last word is written last and cleared first, in one store of eight bytes: a process killed in between leaves a note or
none. It is cleared after the answer and before the number is closed, so that one number never has two.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from modelvold.linux import fanotify
from modelvold.linux.fanotify import Room

_VERSION = 1
_WORD = 8
_DOOR, _FILES, _USED = 1, 2, 3  # words
_ROOM, _NOTES = 64, 128  # bytes
_WORDS_OF_NOTE = 3
#: Reads that may wait at all, whatever their volumes: a read without a note would wait for ever after a restart.
MOST_NOTES = 1 << 16
_SIZE = _NOTES + MOST_NOTES * _WORDS_OF_NOTE * _WORD
_NUMBER = 0xFFFF_FFFF
_NOEXEC_SEAL = 0x8  # MFD_NOEXEC_SEAL, Linux 6.3: where vm.memfd_noexec is 2, there is no memfd without


@dataclass(frozen=True, slots=True)
class Note:
    """The read of `pid` that waits under `number` until the file `inode` is `need` bytes long. `inode` is 0 where it is not known."""

    slot: int
    number: int
    pid: int
    inode: int
    need: int


class Pending:
    """`descriptor` is a memfd of `make`, which may be closed then; without one the notes end with us."""

    def __init__(self, descriptor: int = -1) -> None:
        self._map = mmap.mmap(descriptor, _SIZE)  # anonymous for -1
        self._words = memoryview(self._map).cast("Q")
        self._words[0] = _VERSION
        self._room: Room | None = (ctypes.c_char * fanotify.ROOM).from_buffer(self._map, _ROOM)
        self._lock = threading.Lock()  # guards _free and the number of notes used
        taken = {note.slot for note in self.notes()}
        self._free = [slot for slot in range(self._words[_USED]) if slot not in taken]

    @staticmethod
    def make() -> int:
        """A memfd for the notes, empty."""
        descriptor = os.memfd_create("modelvold-pending", os.MFD_CLOEXEC | _NOEXEC_SEAL)
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    @property
    def room(self) -> Room:
        """Where the kernel writes events."""
        assert self._room is not None  # noqa: S101 — not after close
        return self._room

    def note(self, number: int, pid: int, inode: int, need: int) -> int:
        """The slot of the new note, -1 where there is none left."""
        with self._lock:
            if self._free:
                slot = self._free.pop()
            elif self._words[_USED] == MOST_NOTES:
                return -1
            else:
                slot = self._words[_USED]
                self._words[_USED] = slot + 1
        at = _first_word(slot)
        self._words[at], self._words[at + 1] = inode, need
        self._words[at + 2] = (pid & _NUMBER) << 32 | number + 1
        return slot

    def clear(self, slot: int) -> None:
        """The read was answered. Nothing for -1."""
        if slot < 0:
            return
        self._words[_first_word(slot) + 2] = 0
        with self._lock:
            self._free.append(slot)

    def forget_taken(self) -> None:
        """The event taken last was noted or answered."""
        self._words[_ROOM // _WORD] = 0

    def notes(self) -> list[Note]:
        return list(_notes(self._words))

    def guard(self, door: int) -> None:
        """The group has marked this mount."""
        self._words[_DOOR] = door

    def guard_files(self) -> None:
        """The group has marked files."""
        self._words[_FILES] = 1

    def close(self) -> None:
        self._room = None
        self._words.release()
        self._map.close()


@dataclass(frozen=True, slots=True)
class Left:
    """What a former daemon left in a memfd: what it guarded, and what it did not answer."""

    door: int
    has_marked_files: bool
    notes: tuple[Note, ...]
    taken: tuple[int, int] | None  # number and pid of an event without a note

    @property
    def numbers(self) -> set[int]:
        return {note.number for note in self.notes} | ({self.taken[0]} if self.taken else set())


def read_left(descriptor: int) -> Left | None:
    """Opens nothing, not even for a moment. None where the layout is not ours."""
    found = os.pread(descriptor, _SIZE, 0)
    if len(found) != _SIZE or (words := memoryview(found).cast("Q"))[0] != _VERSION:
        return None
    notes = tuple(_notes(words))
    event = fanotify.taken(found[_ROOM : _ROOM + fanotify.ROOM])
    is_noted = event is None or any(note.number == event.fd for note in notes)
    taken = None if event is None or is_noted else (event.fd, event.pid)
    return Left(words[_DOOR], bool(words[_FILES]), notes, taken)


def _notes(words: memoryview) -> Iterator[Note]:
    for slot in range(min(words[_USED], MOST_NOTES)):
        inode, need, last = words[_first_word(slot) : _first_word(slot + 1)]
        if last:
            yield Note(slot, (last & _NUMBER) - 1, last >> 32, inode, need)


def _first_word(slot: int) -> int:
    return _NOTES // _WORD + slot * _WORDS_OF_NOTE
