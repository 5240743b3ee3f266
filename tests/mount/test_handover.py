"""From one gate to the next, in one process: what a dead one's numbers are to the living.

That a process is killed is shown in `tests/fault/test_restarts.py`; here it ends so far that its descriptors are closed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from modelvold.layer.extent import CHUNK
from modelvold.linux import fanotify
from modelvold.linux.notify import Notify
from modelvold.mount.handover import Handover

from tests.lab import needs
from tests.lab.program import wait_until
from tests.lab.systemd import Systemd
from tests.mount.harness import PAGE, Scene, right, said, scene

pytestmark = pytest.mark.system
LAST = (3 * CHUNK, 4096)  # in segment 3


@pytest.fixture(autouse=True)
def _able(tmp_path: Path) -> None:
    if reason := needs.missing_for_lazy(tmp_path):
        pytest.skip(reason)


@contextmanager
def kept(folder: Path) -> Iterator[tuple[Scene, Systemd]]:
    """A scene whose gate a service manager keeps."""
    systemd = Systemd(folder)

    @contextmanager
    def first() -> Iterator[Handover]:
        with systemd:
            yield Handover(notify_of(systemd), folder / "run/store", folder / "root/content")

    with scene(folder, keeper=first()) as stage:
        yield stage, systemd


def notify_of(systemd: Systemd) -> Notify:
    """What a process finds that systemd starts now; its descriptors are where they are in ours."""
    notify = Notify(dict(systemd.environment))
    notify.received = {}
    for name, descriptor in systemd.given():
        notify.received.setdefault(name, []).append(descriptor)
    return notify


def next_of(stage: Scene, systemd: Systemd) -> Handover:
    return Handover(notify_of(systemd), stage.run / "store", stage.store.root / "content")


def die(stage: Scene) -> list[int]:
    """The gate ends without a word; the numbers that were out, free now."""
    numbers = [read.fd for read in stage.gate.waiting(stage.content.segments)]
    stage.end_gate()
    assert not any(is_open(number) for number in numbers)
    return numbers


def open_again(stage: Scene, handover: Handover) -> None:
    stage.open_gate(20, handover)
    stage.backend.serve([(stage.volume, stage.note)])


def test_those_who_wait_are_served_by_the_next(tmp_path: Path) -> None:
    """They wait through its absence, and are asked for again; what came meanwhile is theirs at once."""
    with kept(tmp_path) as (stage, systemd):
        readers = [stage.read(PAGE), stage.read(LAST)]
        stage.wait_for_reads(2)
        die(stage)
        stage.fill(3)
        assert [reader.poll() for reader in readers] == [None, None]
        stage.bringer.demands.clear()
        with next_of(stage, systemd) as handover:
            assert handover.is_continued
            open_again(stage, handover)
            assert said(readers[1]) == right(LAST)
            assert sorted(stage.bringer.demands) == [1, 3]
            stage.fill(1)
            assert said(readers[0]) == right(PAGE)
            assert stage.gate.waiting(stage.content.segments) == []
            assert stage.questions.pending.notes() == []


def test_a_number_that_is_out_is_given_to_nobody(tmp_path: Path) -> None:
    """The trap: an answer goes to whoever waited first under its number, and the kernel gives new events the lowest one free."""
    with kept(tmp_path) as (stage, systemd):
        old = stage.read(PAGE)
        stage.wait_for_reads(1)
        [number] = die(stage)
        with next_of(stage, systemd) as handover:
            assert Path(f"/proc/self/fd/{number}").readlink() == Path(os.devnull)
            open_again(stage, handover)
            new = stage.read(LAST)
            stage.wait_for_reads(2)
            numbers = {read.pid: read.fd for read in stage.gate.waiting(stage.content.segments)}
            assert numbers[old.pid] == number != numbers[new.pid]
            stage.fill(3)
            assert said(new) == right(LAST)
            stage.wait_for_reads(1)
            stage.fill(1)
            assert said(old) == right(PAGE)
            assert wait_until(lambda: not is_open(number), 5)


def test_without_its_reservation_the_wrong_one_is_answered(tmp_path: Path) -> None:
    """So that the test above says something: this is what the kernel does."""
    with kept(tmp_path) as (stage, systemd), ExitStack() as held:
        old = stage.read(PAGE)
        stage.wait_for_reads(1)
        [number] = die(stage)
        given = dict(systemd.given())
        group = given["gate"]
        for descriptor in given.values():
            held.callback(os.close, descriptor)
        new = stage.read(LAST)
        while (null := os.open(os.devnull, os.O_RDONLY)) < number:
            held.callback(os.close, null)
        os.close(null)  # the lowest that is free
        assert take(group) == (number, new.pid)
        fanotify.allow(group, number)  # meant for `new`
        again, pid = take(group)
        assert pid == old.pid  # was let go, found nothing, and asks again
        for each in (number, again):
            os.close(each)


def test_an_event_without_a_note_is_let_go(tmp_path: Path) -> None:
    """Taken, and killed before it was noted: its reader's kernel asks again, page by page."""
    with kept(tmp_path) as (stage, systemd):
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        [waiting] = stage.gate.waiting(stage.content.segments)
        stage.questions.pending.clear(waiting.slot)
        event = struct.pack("=IBBHQii", 48, 3, 0, 24, 0x0010_0000, waiting.fd, reader.pid)
        stage.questions.pending.room[: len(event)] = event
        die(stage)
        with next_of(stage, systemd) as handover:
            open_again(stage, handover)
            stage.wait_for_reads(1)
            assert stage.gate.events == 1
            stage.fill(1)
            assert said(reader) == right(PAGE)


def test_what_was_silent_and_is_missing_now_is_asked_about(tmp_path: Path) -> None:
    """Marks outlive the daemon that set them, and what they were true of."""
    with kept(tmp_path) as (stage, systemd):
        stage.fill(1)
        marks = Path(f"/proc/self/fdinfo/{stage.questions.descriptor}")
        inode = f"ino:{stage.second.inode:x} "
        assert wait_until(lambda: inode in marks.read_text(), 5)
        die(stage)
        stage.second.truncate()
        with next_of(stage, systemd) as handover:
            open_again(stage, handover)
            assert inode not in Path(f"/proc/self/fdinfo/{stage.questions.descriptor}").read_text()
            reader = stage.read(PAGE)
            stage.wait_for_reads(1)
            stage.fill(1)
            assert said(reader) == right(PAGE)


@pytest.mark.parametrize("change", ["door", "store", "files", "layout", "half"])
def test_what_cannot_be_served_is_given_up(tmp_path: Path, change: str) -> None:
    """And its readers get an error rather than wait for ever."""
    with kept(tmp_path) as (stage, systemd):
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        memory = stage.questions.pending
        if change == "door":
            memory.guard(1)
        elif change == "files":
            memory.guard_files()
        elif change == "layout":
            memory._words[0] = 99
        elif change == "half":
            Notify(dict(systemd.environment)).drop("pending")
        die(stage)
        assert reader.poll() is None
        contents = stage.store.root / ("volumes" if change == "store" else "content")
        with Handover(notify_of(systemd), stage.run / "store", contents) as handover:
            assert not handover.is_continued
            assert systemd.kept == []
            assert said(reader) == ["EIO"]


def test_a_start_that_fails_gives_up(tmp_path: Path) -> None:
    """Its gate opened or not."""
    with kept(tmp_path) as (stage, systemd):
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        die(stage)
        handover = next_of(stage, systemd)
        with pytest.raises(OSError, match="not yet"):
            fail_in(handover)
        assert handover.is_continued is False
        assert systemd.kept == []
        assert said(reader) == ["EIO"]


def test_an_end_after_the_start_gives_nothing_up(tmp_path: Path) -> None:
    with kept(tmp_path) as (stage, systemd):
        notify = Notify(dict(systemd.environment))
        notify.ready()
        with pytest.raises(OSError, match="not yet"):
            fail_in(Handover(notify, stage.run / "store", stage.store.root / "content"))
        assert sorted(systemd.kept) == ["gate", "pending"]


def fail_in(handover: Handover) -> None:
    with handover:
        raise OSError("not yet, or no more")


def take(group: int) -> tuple[int, int]:
    """The next event's number and pid."""
    room = (ctypes.c_char * fanotify.ROOM)()
    until = time.monotonic() + 10
    while (event := fanotify.take(group, room)) is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    return event.fd, event.pid


def is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True
