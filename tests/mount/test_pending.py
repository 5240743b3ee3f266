"""Notes of what is not answered: read by whoever has the memory, however the one who wrote them ended."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from modelvold.linux import fanotify
from modelvold.mount import pending
from modelvold.mount.pending import Note, Pending, read_left


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = Pending.make()
    yield descriptor
    os.close(descriptor)


def put_event(pending: Pending, number: int, pid: int) -> None:
    """As the kernel writes one, with its range."""
    event = struct.pack("=IBBHQii", 48, 3, 0, 24, 0x0010_0000, number, pid)
    event += struct.pack("=BBHIQQ", 6, 0, 24, 0, 8192, 4096)
    pending.room[: len(event)] = event


def test_a_note_lives_until_it_is_cleared(memory: int) -> None:
    """In the memory itself: nobody needs to write anything down at the end."""
    ours = Pending(memory)
    first, second = ours.note(7, 41, 1 << 40, 12288), ours.note(8, 42, 5, 1 << 33)
    left = read_left(memory)
    assert left is not None
    assert left.notes == (Note(first, 7, 41, 1 << 40, 12288), Note(second, 8, 42, 5, 1 << 33))
    ours.clear(first)
    ours.close()
    with_next = Pending(memory)
    assert with_next.notes() == [Note(second, 8, 42, 5, 1 << 33)]
    assert with_next.note(9, 43, 6, 1) == first
    assert sorted(note.number for note in with_next.notes()) == [8, 9]
    with_next.close()


def test_what_is_guarded_is_told(memory: int) -> None:
    ours = Pending(memory)
    ours.guard(0x1234_5678_9ABC)
    left = read_left(memory)
    assert left is not None
    assert (left.door, left.has_marked_files, left.notes, left.taken, left.numbers) == (
        0x1234_5678_9ABC,
        False,
        (),
        None,
        set(),
    )
    ours.guard_files()
    left = read_left(memory)
    assert left is not None
    assert left.has_marked_files
    ours.close()


def test_an_event_without_a_note_is_found(memory: int) -> None:
    """Taken, and then killed; where it has a note, the note says more."""
    ours = Pending(memory)
    ours.note(7, 41, 1, 1)
    put_event(ours, 9, 44)
    left = read_left(memory)
    assert left is not None
    assert left.taken == (9, 44)
    assert left.numbers == {7, 9}
    ours.note(9, 44, 2, 12288)
    left = read_left(memory)
    assert left is not None
    assert left.taken is None
    ours.forget_taken()
    assert fanotify.taken(ours.room) is None
    ours.close()


def test_another_layout_is_not_read(memory: int) -> None:
    Pending(memory).close()
    os.pwrite(memory, struct.pack("Q", 99), 0)
    assert read_left(memory) is None
    os.ftruncate(memory, 4096)
    assert read_left(memory) is None


def test_there_is_an_end_to_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a slot a read is not noted, and the one who asked is told."""
    monkeypatch.setattr(pending, "MOST_NOTES", 3)
    ours = Pending()
    slots = [ours.note(number, 1, 1, 1) for number in range(10, 14)]
    assert slots == [0, 1, 2, -1]
    ours.clear(-1)
    ours.clear(1)
    assert ours.note(14, 1, 1, 1) == 1
    assert sorted(note.number for note in ours.notes()) == [10, 12, 14]
    ours.close()
