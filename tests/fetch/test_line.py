"""How the line is shared: bounds for each host, demands before prefetch, who is left behind, registries without ranges."""

from __future__ import annotations

from pathlib import Path

from modelvold.fetch.fetcher import whole
from modelvold.fetch.stretch import Stretch
from modelvold.layer.extent import CHUNK
from modelvold.store.content import Content

from tests.fakes.registry import generated
from tests.fetch.house import DATA, SEGMENTS, SIZE, House, bytes_of, house, until
from tests.store.keeping import wait_for_state


def _each(content: Content) -> list[Stretch]:
    """A request for each segment."""
    return [Stretch(content.id, number, number + 1) for number in range(len(content.segments))]


def _range(number: int) -> str:
    return f"bytes={number * CHUNK}-{min(SIZE, (number + 1) * CHUNK) - 1}"


def _starts(made: House) -> list[int]:
    return [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in made.ranges]


def test_prefetch_leaves_a_request_of_each_host_to_a_demand(tmp_path: Path) -> None:
    """Of four connections and two to a host: two prefetches and, at once, a demand."""
    with house(tmp_path, per_host=2) as made:
        made.registry.behaviour.rate = CHUNK // 4
        content = made.add()
        made.fetcher.prefetch(_each(content))
        until(lambda: len(made.ranges) == 2)
        made.fetcher.demand(content.segments[5])
        until(lambda: len(made.ranges) == 3)
        assert set(made.ranges[:2]) == {_range(0), _range(1)}
        assert made.ranges[2] == _range(5)


def test_prefetches_end_where_they_are_for_demands(tmp_path: Path) -> None:
    """Two more demands than there are connections: two prefetches make way, and what they brought is not fetched again."""
    with house(tmp_path) as made:
        made.registry.behaviour.rate = CHUNK
        made.registry.behaviour.piece = 16 << 10
        content = made.add()
        other = made.add(generated(3 * CHUNK, seed=5).read(0, 3 * CHUNK))
        made.fetcher.prefetch(_each(content))
        until(lambda: sum(segment.present > 0 for segment in content.segments) == 3)
        for segment in other.segments:
            made.fetcher.demand(segment)
        until(lambda: len(made.ranges) == 6)
        asked = [request for request in made.registry.requests if request.is_blob]
        assert [str(other.digest) in request.path for request in asked] == [False] * 3 + [True] * 3
        made.registry.behaviour.rate = None
        wait_for_state(content, "verified")
        wait_for_state(other, "verified")
        again = [start for start in _starts(made)[6:] if start % CHUNK]
        assert len(again) >= 2
        assert made.notes.failures == []


def test_prefetch_holds_still_while_somebody_waits_who_was_not_expected(tmp_path: Path) -> None:
    """Nothing is read for it until the demand is there; then it goes on, on the same connection."""
    with house(tmp_path) as made:
        made.registry.behaviour.rate = CHUNK
        made.registry.behaviour.piece = 16 << 10
        content = made.add()
        other = made.add(generated(CHUNK, seed=5).read(0, CHUNK))
        made.fetcher.prefetch([whole(content)])
        until(lambda: content.present > 0)
        made.fetcher.demand(other.segments[0])
        until(lambda: other.present > CHUNK // 4)
        before = content.present
        until(lambda: other.present > CHUNK // 2)
        assert content.present == before
        wait_for_state(content, "verified")
        assert made.ranges == [f"bytes=0-{SIZE - 1}", f"bytes=0-{CHUNK - 1}"]


def test_one_left_behind_is_gone_on_with_elsewhere(tmp_path: Path) -> None:
    """A mirror that has become slow: given up where it is, and the rest comes from the registry; nobody is told of a failure."""
    with house(tmp_path, mirrors=1, stall=60) as made:
        mirror = made.mirrors[0]
        for seed in (7, 8):
            wait_for_state(_fetched(made, seed), "verified")
        content = made.add()
        mirror.behaviour.rate = 200 << 10
        mirror.behaviour.piece = 20 << 10
        made.fetcher.prefetch([whole(content)])
        wait_for_state(content, "verified")
        start = _starts(made)[-1]
        assert 0 < start < SIZE
        assert made.ranges == [f"bytes={start}-{SIZE - 1}"]
        assert made.notes.failures == []
        assert content.last_error is None
        assert bytes_of(content) == DATA


def _fetched(made: House, seed: int) -> Content:
    content = made.add(generated(4 * CHUNK, seed=seed).read(0, 4 * CHUNK))
    made.fetcher.prefetch([whole(content)])
    return content


def test_a_registry_without_ranges_is_read_once_from_its_start(house: House) -> None:
    """The first request finds it out; the next brings all of it, whatever else is demanded meanwhile."""
    house.registry.behaviour.ignore_range = True
    house.registry.behaviour.rate = 16 * CHUNK
    content = house.add()
    house.fetcher.demand(content.segments[3])
    until(lambda: content.segments[0].present > 0)
    for number in (5, 1, 4):
        house.fetcher.demand(content.segments[number])
    wait_for_state(content, "verified")
    assert len(house.ranges) == 2
    assert bytes_of(content) == DATA


def test_a_stream_passes_over_what_is_here(house: House) -> None:
    """A part that came before is not appended again, and nothing is called wrong."""
    content = house.add()
    house.registry.behaviour.cut_after = 2 * CHUNK + 1000
    house.fetcher.prefetch([whole(content)])
    until(lambda: content.present > 2 * CHUNK)
    house.registry.behaviour.cut_after = None
    house.registry.behaviour.ignore_range = True
    wait_for_state(content, "verified")
    assert bytes_of(content) == DATA


def test_within_a_bandwidth(tmp_path: Path) -> None:
    """All comes, in pieces no larger than a tenth of a second's worth."""
    with house(tmp_path, bandwidth=20 * CHUNK) as made:
        content = made.add()
        made.fetcher.prefetch([whole(content)])
        made.fetcher.demand(content.segments[4])
        wait_for_state(content, "verified")
        assert len(made.notes.told) >= SEGMENTS
