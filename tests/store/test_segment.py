"""One segment file: grows by appending alone, and is only ever truncated to nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import xxhash
from modelvold.errors import Failing, Refused
from modelvold.layer.extent import ContentOffset, Extent
from modelvold.store.segment import Segment

LENGTH = 1300  # three blocks, the last of them not full


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    segment = Segment(lambda: tmp_path, 7, Extent(ContentOffset(4096), ContentOffset(4096 + LENGTH)), None)
    segment.path.touch()
    return segment


def _bytes(length: int) -> memoryview:
    return memoryview(os.urandom(length))


def test_appends_and_pads_behind_the_last_byte(segment: Segment) -> None:
    """The file is the bytes in the order they came, then zeros up to a whole block; the fingerprint leaves those out."""
    first, second = _bytes(1000), _bytes(300)
    with segment.writer() as writer:
        writer.append(first)
        assert (segment.present, segment.filled, segment.is_complete, writer.remaining) == (1000, 1000, False, 300)
        assert segment.path.stat().st_size == 1000
        writer.append(second)
        assert writer.remaining == 0
    assert (segment.present, segment.filled, segment.is_complete) == (1536, LENGTH, True)
    assert segment.path.read_bytes() == bytes(first) + bytes(second) + bytes(236)
    assert segment.fingerprint() == xxhash.xxh3_64(bytes(first) + bytes(second)).digest()


def test_goes_on_where_an_earlier_writer_ended(segment: Segment) -> None:
    """Leaving a writer keeps the bytes; the next one appends behind them."""
    whole = _bytes(LENGTH)
    for start, end in ((0, 100), (100, 1299), (1299, LENGTH)):
        with segment.writer() as writer:
            assert writer.remaining == LENGTH - start
            writer.append(whole[start:end])
    assert segment.path.read_bytes()[:LENGTH] == whole


def test_one_writer_at_a_time(segment: Segment) -> None:
    """A second transfer is refused; once the first is through, it may."""
    with segment.writer(), pytest.raises(Refused, match="another transfer"):
        segment.writer()
    with segment.writer():
        pass


def test_more_than_fits_is_refused(segment: Segment) -> None:
    """A registry that sends too much fills no neighbour's place."""
    with segment.writer() as writer, pytest.raises(Refused, match="do not fit"):
        writer.append(_bytes(LENGTH + 1))
    assert segment.path.stat().st_size == 0


def test_a_late_buffer_is_dropped(segment: Segment) -> None:
    """Truncated under its writer: what that one still brings would make a hole, so it is refused, and the file stays empty."""
    with segment.writer() as writer:
        writer.append(_bytes(512))
        segment.truncate()
        with pytest.raises(Refused, match="truncated"):
            writer.append(_bytes(100))
    assert (segment.path.stat().st_size, segment.present, segment.durable) == (0, 0, False)
    whole = _bytes(LENGTH)
    with segment.writer() as writer:
        writer.append(whole)
    assert segment.fingerprint() == xxhash.xxh3_64(bytes(whole)).digest()


@pytest.mark.parametrize("size", [0, 511, 513, 4096])
def test_a_foreign_hand_is_seen(segment: Segment, size: int) -> None:
    """A file that is not as long as we left it is written by somebody else: nothing more is appended."""
    with segment.writer() as writer:
        writer.append(_bytes(512))
        os.truncate(segment.path, size)
        with pytest.raises(Failing, match="somebody else"):
            writer.append(_bytes(100))
    assert segment.path.stat().st_size == size
