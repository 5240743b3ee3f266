"""What is thought of a content, while its segments come and go: only of what was there from the first byte hashed to the verdict."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from modelvold.store import withdrawal
from modelvold.store.content import Content
from modelvold.store.room import Bounds, Lease
from modelvold.store.running import RunningDigest, Stamp
from modelvold.store.scrub import Pace
from modelvold.store.segment import Segment
from modelvold.store.store import Store

from tests.lab.program import wait_until
from tests.store.keeping import SOURCE, add, fill, fill_all, wait_for_state

SIZE = 4096
DATA = os.urandom(4 * SIZE)


class Above:
    """Takes notes of what was wrong."""

    def __init__(self) -> None:
        self.wrong: list[list[int]] = []

    def leases(self) -> Mapping[int, Lease]:
        return {}

    def start_over(self, content: Content) -> bool:
        return False

    def on_wrong(self, segments: Sequence[Segment]) -> None:
        self.wrong.append([segment.number for segment in segments])


def _held_digest(monkeypatch: pytest.MonkeyPatch, *, before: bool) -> tuple[threading.Event, threading.Event]:
    """The next digest waits, before bytes are read back or at the end; when it does, and until when."""
    waiting, going = threading.Event(), threading.Event()
    read, found = RunningDigest._read, RunningDigest.found

    def hold() -> None:
        waiting.set()
        going.wait(10)

    def held_read(running: RunningDigest, segment: Segment, *rest: Any) -> int:
        hold()
        return read(running, segment, *rest)

    def held_found(running: RunningDigest) -> tuple[str, Stamp]:
        what = found(running)
        hold()
        return what

    if before:
        monkeypatch.setattr(RunningDigest, "_read", held_read)
    else:
        monkeypatch.setattr(RunningDigest, "found", held_found)
    return waiting, going


@pytest.mark.parametrize("before", [True, False], ids=["before they are read", "after they were read"])
def test_what_went_while_it_was_hashed_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Neither in quarantine for bytes that were evicted, nor verified with bytes that nobody hashed."""
    waiting, going = _held_digest(monkeypatch, before=before)
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for number in (1, 2, 3, 0):  # so that some are read back
            fill(store, content.segments[number], DATA)
        assert waiting.wait(10)
        store._withdrawal.evict(content.segments[1:2])
        going.set()
        assert wait_until(lambda: not store.is_verifying(content), 10)
        assert content.state == "unverified"
        fill(store, content.segments[1], bytes(4 * SIZE))
        wait_for_state(content, "quarantined")
    with Store(tmp_path / "again") as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")


@pytest.mark.parametrize("is_right", [True, False], ids=["right bytes", "wrong bytes"])
def test_what_came_meanwhile_is_not_judged_by_what_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_right: bool
) -> None:
    """Durable again when the verdict is due, and other bytes than were hashed."""
    waiting, going = _held_digest(monkeypatch, before=False)
    first, second = (bytes(len(DATA)), DATA) if is_right else (DATA, bytes(len(DATA)))
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for segment in content.segments:
            fill(store, segment, first if segment.number == 1 else DATA)
        assert waiting.wait(10)
        store._withdrawal.evict(content.segments[1:2])
        fill(store, content.segments[1], second)
        assert wait_until(lambda: content.is_durable, 10)
        going.set()
        wait_for_state(content, "verified" if is_right else "quarantined")


def test_who_read_what_was_evicted_unverified_may_have_other_bytes(tmp_path: Path) -> None:
    """Told where other bytes come than were there, and not where the same do."""
    with Store(tmp_path) as store:
        store.serve(above := Above())
        content = add(store, DATA, SIZE)
        lie = bytes(SIZE)
        fill(store, content.segments[0], lie + DATA[SIZE:])
        fill(store, content.segments[1], DATA)
        assert wait_until(lambda: content.segments[0].durable and content.segments[1].durable, 10)
        fill(store, content.segments[2], DATA, 100)
        store._withdrawal.evict(content.segments)
        fill_all(store, content, DATA)
        assert sorted(above.wrong) == [[0], [2]]
        wait_for_state(content, "verified")


def test_rot_that_is_met_at_an_eviction_is_rot(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.serve(above := Above())
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        content.segments[3].path.write_bytes(bytes(SIZE))
        store._withdrawal.evict(content.segments[2:])
        assert above.wrong == [[3]]
        assert store.wrong_segments == 1
        assert [bool(segment.digest) for segment in content.segments] == [False, False, True, False]
        assert content.state == "unverified"


def test_all_that_was_wrong_is_told(tmp_path: Path) -> None:
    """Also what had been evicted before the mismatch was found: somebody may have read it."""
    with Store(tmp_path) as store:
        store.serve(above := Above())
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.withdraw(content.segments[2:3])
        store.withdraw_wrong(content.segments)
        assert above.wrong == [[0, 1, 2, 3]]


def test_a_disk_that_cannot_read_a_segment_keeps_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is evicted without a digest; a scrub calls it wrong and goes on."""
    real = withdrawal.sums_of

    def failing(segment: Segment, *rest: Callable[[int], object]) -> tuple[bytes, bytes]:
        if segment.number == 1:
            raise OSError(5, "Input/output error")
        return real(segment, *rest)

    with Store(tmp_path, Bounds(quota=4 * SIZE)) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        monkeypatch.setattr(withdrawal, "sums_of", failing)
        monkeypatch.setattr("modelvold.store.scrub.sums_of", failing)
        assert [looked.is_right for looked in store.scrub(content, Pace(1 << 40, print))] == [True, False, True, True]
        fill(store, content.segments[1], DATA)
        wait_for_state(content, "verified")
        store._withdrawal.evict(content.segments)
        assert [bool(segment.digest) for segment in content.segments] == [True, False, True, True]
        assert content.present == 0


def test_what_is_in_quarantine_is_not_there_after_a_start(tmp_path: Path) -> None:
    """Killed between the verdict and the truncation."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.catalog.set_state(content.id, "quarantined", "for a test")
    for is_continued in (False, True):
        with Store(tmp_path, is_continued=is_continued) as store:
            [content] = store.contents()
            assert (content.state, content.present) == ("quarantined", 0)


def test_what_was_found_wrong_is_not_kept_by_who_goes_on(tmp_path: Path) -> None:
    """Killed in the second before it was truncated: the next daemon finds it in no record, as it finds what was just fetched."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.catalog.unrecord([(content.id, 1)], are_wrong=True)
        store.catalog.unrecord([(content.id, 2)])
    with Store(tmp_path, is_continued=True) as store:
        [content] = store.contents()
        assert [segment.present for segment in content.segments] == [SIZE, 0, SIZE, SIZE]
        fill(store, content.segments[1], DATA, 10)
    with Store(tmp_path, is_continued=True) as store:
        assert store.contents()[0].segments[1].present == 10, "what comes afterwards is not wrong"


def test_a_removed_content_does_nothing_to_its_successor(tmp_path: Path) -> None:
    """Removed and pulled again while a segment of it was about to be truncated: the file of that name is another's."""
    with Store(tmp_path) as store:
        old = add(store, DATA, SIZE)
        store.remove(old)
        new = add(store, DATA, SIZE)
        fill_all(store, new, DATA)
        old.segments[0].truncate()
        old.segments[0].reserve()
        assert new.segments[0].path.stat().st_size == SIZE
        wait_for_state(new, "verified")


def test_what_is_shared_and_no_longer_verified_is_withheld(tmp_path: Path) -> None:
    """Rule 6: until it has matched again, for it is read by sources it does not come from."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert content.source == "" != SOURCE
        store.withdraw(content.segments[:1])
        assert [segment.is_open for segment in content.segments] == [False, True, True, True]
        assert content.segments[0].withheld
        fill(store, content.segments[0], DATA)
        wait_for_state(content, "verified")
        assert wait_until(lambda: all(segment.is_open for segment in content.segments), 10)


def test_room_of_a_transfer_is_nobody_elses(tmp_path: Path) -> None:
    """From when it was taken until the transfer has ended, also of the segments that it has not come to."""
    with Store(tmp_path, Bounds(quota=4 * SIZE)) as store:
        first, second = add(store, DATA, SIZE), add(store, DATA[1:], SIZE)
        with store.room.taken(first.segments, is_read=True):
            assert [candidate.segment for candidate in store.room._candidates()] == []
        assert len(list(store.room._candidates())) == 4
        with store.room.taken(second.segments[:1], is_read=True):
            assert store.used() <= 4 * SIZE
