"""Room: what goes for it, in which order, and what is never promised twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from modelvold.errors import Exhausted
from modelvold.store import room as rooms
from modelvold.store.content import Content
from modelvold.store.room import Bounds, Candidate, Lease, choose
from modelvold.store.segment import Segment
from modelvold.store.store import Store

from tests.store.keeping import add, extents, fill, fill_all, wait_for_state

SIZE = 4096
ALONE: Mapping[Lease, int] = {Lease.NONE: 0, Lease.MOUNTED: 0}


def _candidates(tmp_path: Path, *those: tuple[Lease, float]) -> list[Candidate]:
    cut = extents(SIZE * len(those), SIZE)
    segments = [Segment(lambda: tmp_path, n, extent, None) for n, extent in enumerate(cut)]
    return [Candidate(segment, lease, touched, SIZE) for segment, (lease, touched) in zip(segments, those, strict=True)]


def _numbers(chosen: Sequence[Candidate]) -> list[int]:
    return [candidate.segment.number for candidate in chosen]


def test_unused_go_first_then_the_least_recently_used(tmp_path: Path) -> None:
    those = _candidates(
        tmp_path, (Lease.MOUNTED, 1), (Lease.NONE, 9), (Lease.HELD, 0), (Lease.NONE, 5), (Lease.MOUNTED, 0)
    )
    assert _numbers(choose(those, SIZE, Lease.MOUNTED, ALONE)) == [3]
    assert _numbers(choose(those, SIZE + 1, Lease.MOUNTED, ALONE)) == [3, 1]
    assert _numbers(choose(those, 4 * SIZE, Lease.MOUNTED, ALONE)) == [3, 1, 4, 0]
    assert choose(those, 4 * SIZE + 1, Lease.MOUNTED, ALONE) == [], "what is held never goes, and nothing goes in vain"
    assert choose(those, 2 * SIZE + 1, Lease.NONE, ALONE) == [], "a prefetch takes nothing that is in use"


def test_more_goes_ahead_but_only_of_its_kind(tmp_path: Path) -> None:
    those = _candidates(tmp_path, *[(Lease.NONE, n) for n in range(4)], *[(Lease.MOUNTED, n) for n in range(4)])
    ahead = {Lease.NONE: 8 * SIZE, Lease.MOUNTED: SIZE}
    assert _numbers(choose(those, SIZE, Lease.MOUNTED, ahead)) == [0, 1, 2, 3]
    assert _numbers(choose(those, 5 * SIZE, Lease.MOUNTED, ahead)) == [0, 1, 2, 3, 4, 5]


class _Above:
    """Leases by content; nothing else happens."""

    def __init__(self) -> None:
        self.given: dict[int, Lease] = {}

    def leases(self) -> Mapping[int, Lease]:
        return self.given

    def start_over(self, content: Content) -> bool:
        return False

    def on_wrong(self, segments: Sequence[Segment]) -> None:
        pass


def test_a_quota_is_kept(tmp_path: Path) -> None:
    """Room is made for what is asked for, by what is not in use; what is verified stays so, and comes again as it was."""
    old, new = os.urandom(4 * SIZE), os.urandom(4 * SIZE)
    with Store(tmp_path, Bounds(quota=5 * SIZE)) as store:
        store.serve(above := _Above())
        first, second = add(store, old, SIZE), add(store, new, SIZE)
        store.room.take(first.segments, is_read=False)
        fill_all(store, first, old)
        wait_for_state(first, "verified")
        above.given = {second.id: Lease.MOUNTED}
        store.room.take(second.segments[:1], is_read=False)
        assert store.used() == 5 * SIZE
        assert store.room.free() == 0
        assert store.room.within_reach() >= 4 * SIZE
        store.room.take(second.segments[1:3], is_read=False)
        assert store.used() <= 5 * SIZE
        gone = [segment for segment in first.segments if not segment.present]
        assert len(gone) >= 2
        assert first.state == "verified"
        assert all(segment.digest for segment in gone)
        assert store.room.evicted == len(gone) * SIZE
        fill(store, gone[0], old)
        assert gone[0].shown == SIZE


def test_what_is_in_use_goes_for_demands_alone_and_what_is_held_never(tmp_path: Path) -> None:
    data = os.urandom(3 * SIZE)
    above = _Above()
    with Store(tmp_path, Bounds(quota=3 * SIZE)) as store:
        store.serve(above)
        content, other = add(store, data, SIZE), add(store, data[1:], SIZE)
        fill_all(store, content, data)
        wait_for_state(content, "verified")
        above.given = {content.id: Lease.MOUNTED}
        with pytest.raises(Exhausted, match="modelvold gc"):
            store.room.take(other.segments[:1], is_read=False)
        assert store.used() == 3 * SIZE
        store.room.take(other.segments[:1], is_read=True)
        assert content.present < 3 * SIZE
        above.given = {content.id: Lease.HELD, other.id: Lease.HELD}
        with pytest.raises(Exhausted):
            store.room.take(other.segments, is_read=True)


def test_the_least_recently_touched_goes(tmp_path: Path) -> None:
    data = os.urandom(4 * SIZE)
    above = _Above()
    with Store(tmp_path, Bounds(quota=4 * SIZE)) as store:
        store.serve(above)
        content, other = add(store, data, SIZE), add(store, data[SIZE:], SIZE)
        fill_all(store, content, data)
        wait_for_state(content, "verified")
        above.given = {content.id: Lease.MOUNTED}
        for age, segment in enumerate(content.segments):
            segment.touched = (3, 1, 2, 4)[age]
        store.room.take(other.segments[:1], is_read=True)
        assert [bool(segment.present) for segment in content.segments] == [True, False, False, True]


def test_nothing_is_promised_twice(tmp_path: Path) -> None:
    """Many ask at once for the last room: no more is set aside than there is, and who gets none is told."""
    data = os.urandom(16 * SIZE)
    with Store(tmp_path, Bounds(quota=8 * SIZE)) as store:
        store.serve(above := _Above())
        content = add(store, data, SIZE)
        above.given = {content.id: Lease.HELD}
        refused: list[int] = []
        begin = threading.Barrier(16)

        def ask(segment: Segment) -> None:
            begin.wait()
            try:
                store.room.take([segment], is_read=True)
            except Exhausted:
                refused.append(segment.number)

        threads = [threading.Thread(target=ask, args=(segment,)) for segment in content.segments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 8
        assert store.used() == 8 * SIZE


def test_the_reserve_is_left_to_others(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    with Store(tmp_path, Bounds(reserve=2 * free)) as store:
        content = add(store, bytes(SIZE), SIZE)
        assert store.room.free() < 0
        with pytest.raises(
            Exhausted, match=r"no room for 4\.00 KiB more, 0 B are left \(.* of the disk left to others\)"
        ):
            store.room.take(content.segments, is_read=True)
        assert not content.segments[0].reserved


def test_room_is_set_aside_and_the_size_stays_the_record(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    with Store(tmp_path) as store:
        content = add(store, data)
        [segment] = content.segments
        store.room.take([segment], is_read=False)
        state = segment.path.stat()
        assert (state.st_size, segment.present, segment.taken) == (0, 0, len(data))
        assert state.st_blocks * 512 >= len(data)
        store.withdraw([segment])
        assert segment.path.stat().st_blocks == 0, "what was set aside is given back"
        assert segment.taken == 0


def test_taking_nothing_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        content = add(store, bytes(SIZE), SIZE)
        store.room.take(content.segments, is_read=False)
        monkeypatch.setattr(rooms.Room, "free", lambda _: pytest.fail("asked"))
        store.room.take(content.segments, is_read=False)
