"""Who waits, and until when: no kernel, no clock."""

from __future__ import annotations

from pathlib import Path

from modelvold.layer.extent import CHUNK
from modelvold.mount.waits import COOL_DOWN, MOST_WAITING, PROGRESS, Waiting, Waits
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import ContentRow
from modelvold.store.content import Content
from modelvold.store.segment import Segment

from tests.store.keeping import extents

D = 60.0


def content_of(count: int) -> Content:
    row = ContentRow(1, Digest.of(b"x"), Reading.RAW, "a", count * CHUNK, "unverified", "")
    content = Content(Path("/nowhere"), row, extents(count * CHUNK))
    for segment in content.segments:
        segment.inode = 100 + segment.number
    return content


def read(need: int, since: float, fd: int = 9) -> Waiting:
    return Waiting(fd, 1, need, since)


def late(waits: Waits, now: float) -> list[tuple[Segment, int]]:
    return [(segment, len(reads)) for segment, reads in waits.late(now)]


def test_one_deadline_for_a_segment() -> None:
    """From its first read; who comes later waits no longer for that."""
    [segment] = content_of(1).segments
    waits = Waits(D)
    waits.add(segment, "v", read(CHUNK, 100.0))
    waits.add(segment, "v", read(CHUNK, 150.0))
    assert waits.next_deadline() == 160.0
    assert late(waits, 159.9) == []
    assert late(waits, 160.0) == [(segment, 2)]
    assert waits.is_cooling(segment, 160.0 + COOL_DOWN - 0.1)
    assert not waits.is_cooling(segment, 160.0 + COOL_DOWN)
    assert waits.next_deadline() == float("inf")


def test_only_progress_moves_it() -> None:
    [segment] = content_of(1).segments
    waits = Waits(D)
    waits.add(segment, "v", read(CHUNK, 0.0))
    segment.present = PROGRESS - 1
    assert waits.look(30.0) == []
    assert waits.next_deadline() == D
    segment.present = PROGRESS
    waits.look(31.0)
    assert waits.next_deadline() == 31.0 + D
    segment.present += PROGRESS  # seen at the end, if not before
    assert late(waits, 91.0) == []
    assert late(waits, 91.0 + D) == [(segment, 1)]


def test_the_last_bytes_are_progress_however_few() -> None:
    """All that was missing has come, though the content around it has not, and it may not be read yet."""
    content = content_of(2)
    segment = content.segments[0]
    segment.present = CHUNK - 512
    content.segments[1].present = CHUNK
    segment.withheld = True
    waits = Waits(D)
    waits.add(segment, "v", read(CHUNK, 0.0))
    segment.present = CHUNK
    waits.look(50.0)
    assert waits.next_deadline() == 50.0 + D


def test_a_truncation_begins_anew() -> None:
    [segment] = content_of(1).segments
    segment.present = CHUNK
    waits = Waits(D)
    assert not waits.start_over(segment, 1.0)
    waits.add(segment, "v", read(CHUNK, 0.0))
    segment.present = 0
    assert waits.start_over(segment, 10.0)
    assert waits.next_deadline() == 10.0 + D
    segment.present = PROGRESS
    waits.look(20.0)
    assert waits.next_deadline() == 20.0 + D


def test_the_covered_go() -> None:
    [segment] = content_of(1).segments
    waits = Waits(D)
    for need in (4096, 8192, CHUNK):
        waits.add(segment, "v", read(need, 0.0, fd=need))
    segment.present = 8192
    assert [each.need for each in waits.covered(segment)] == [4096, 8192]
    assert [each.need for each in waits.reads({segment.inode})] == [CHUNK]
    segment.leaving, segment.present = True, CHUNK
    assert waits.covered(segment) == waits.look(1.0) == []
    segment.leaving = False
    assert [each.need for each in waits.look(2.0)] == [CHUNK]
    assert not waits.is_waited_for(segment)


def test_bytes_end_a_cool_down_and_a_drip_does_not() -> None:
    [segment] = content_of(1).segments
    waits = Waits(D)
    segment.present = 4096
    assert waits.fail(segment, "v", 0.0) == []
    assert waits.is_cooling(segment, 1.0)
    segment.present += 512
    assert waits.is_cooling(segment, 1.0)
    segment.present += PROGRESS
    assert not waits.is_cooling(segment, 1.0)
    waits.look(COOL_DOWN)
    assert repr(waits) == "<waits segments=0 reads=0>"


def test_a_volume_has_its_share() -> None:
    one, other = content_of(2).segments
    waits = Waits(D)
    for number in range(MOST_WAITING):
        waits.add(one, "v", read(1, 0.0, fd=number))
    assert waits.is_full("v")
    assert not waits.is_full("w")
    waits.add(other, "w", read(1, 0.0))
    assert len(waits.drop(one)) == MOST_WAITING
    assert not waits.is_full("v")
    assert len(waits.take_all()) == 1


def test_a_read_that_is_withdrawn_waits_no_more() -> None:
    """The last one of a segment says so, for it is fetched for nobody then."""
    [segment] = content_of(1).segments
    waits = Waits(D)
    waits.add(segment, "v", read(CHUNK, 0.0, fd=1))
    waits.add(segment, "v", read(CHUNK, 0.0, fd=2))
    assert waits.withdraw(3) is None
    assert waits.withdraw(1) is None
    assert [each.fd for each in waits.reads({segment.inode})] == [2]
    assert waits.withdraw(2) is segment
    assert not waits.is_waited_for(segment)
    assert late(waits, D + 1) == []
