"""The fetcher against a real registry with bad habits: how often it asks, for which bytes, and what becomes of those who wait."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from modelvold.errors import NotFound
from modelvold.fetch.fetcher import Fetcher, whole
from modelvold.layer.extent import CHUNK
from modelvold.oci.reference import Repository
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.store.store import Store

from tests.fakes.registry import FakeRegistry, generated
from tests.fetch.house import DATA, SIZE, House, bytes_of, until
from tests.lab.program import wait_until
from tests.store.keeping import add, fill, wait_for_state


def test_prefetch_is_one_request_for_every_byte_once(house: House) -> None:
    """A small model is one range of one request, verified against its digest."""
    content = house.add()
    house.fetcher.prefetch([whole(content)])
    wait_for_state(content, "verified")
    assert house.ranges == [f"bytes=0-{SIZE - 1}"]
    assert house.registry.bytes_sent() == SIZE
    assert bytes_of(content) == DATA


def test_a_demand_asks_for_its_segment_alone(house: House) -> None:
    """No byte that nobody reads."""
    content = house.add()
    house.fetcher.demand(content.segments[3])
    until(lambda: content.segments[3].durable)
    assert house.ranges == [f"bytes={3 * CHUNK}-{4 * CHUNK - 1}"]
    assert content.present == CHUNK


def test_many_demands_of_one_segment_are_one_request(house: House) -> None:
    """Single flight, before the answer begins as well as after."""
    house.registry.behaviour.delay = 0.3
    content = house.add()
    for _ in range(20):
        house.fetcher.demand(content.segments[2])
        time.sleep(0.01)
    until(lambda: content.segments[2].durable)
    assert house.ranges == [f"bytes={2 * CHUNK}-{3 * CHUNK - 1}"]


def test_a_demand_overtakes_a_running_prefetch(house: House) -> None:
    """It is taken from the prefetch, has a request of its own, and what lay behind it comes too."""
    house.registry.behaviour.rate = 8 * CHUNK
    content = house.add()
    house.fetcher.prefetch([whole(content)])
    until(lambda: content.segments[0].present > 0)
    house.fetcher.demand(content.segments[4])
    wait_for_state(content, "verified")
    assert f"bytes={4 * CHUNK}-{5 * CHUNK - 1}" in house.ranges
    assert f"bytes={5 * CHUNK}-{SIZE - 1}" in house.ranges
    assert bytes_of(content) == DATA


def test_cut_bodies_are_gone_on_with(house: House) -> None:
    """Each request begins at the first byte that is missing; no byte is appended twice."""
    cut = CHUNK + 70_000
    house.registry.behaviour.cut_after = cut
    content = house.add()
    house.fetcher.prefetch([whole(content)])
    wait_for_state(content, "verified")
    starts = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in house.ranges]
    assert starts == sorted(set(starts))
    assert starts[1] <= cut
    assert house.notes.failures == []
    assert bytes_of(content) == DATA


def test_a_prefetch_over_segments_that_hold_a_part(house: House) -> None:
    """A run that meets a segment begun by an earlier, cut transfer fills it from where it ends, not with its first bytes."""
    content = house.add()
    fill(house.store, content.segments[3], DATA, 300_000)
    house.fetcher.prefetch([whole(content)])
    until(lambda: content.state != "unverified")
    assert content.state == "verified"
    assert house.ranges[1:] == [f"bytes={3 * CHUNK + 300_000}-{SIZE - 1}"]
    assert bytes_of(content) == DATA


def test_a_restart_of_the_registry_is_waited_out(house: House) -> None:
    """503 is asked again, more slowly each time, and nobody is told of a failure."""
    house.registry.behaviour.status = {".*": 503}
    content = house.add()
    house.fetcher.demand(content.segments[0])
    until(lambda: len(house.ranges) >= 3)
    house.registry.behaviour.status = {}
    until(lambda: content.segments[0].durable)
    assert house.notes.failures == []


def test_a_permanent_failure_is_told_at_once(house: House) -> None:
    """A blob that is not there is asked for once, and whoever waits is told why."""
    content = house.add()
    house.registry.blobs.clear()
    house.fetcher.demand(content.segments[1])
    until(lambda: bool(house.notes.failures))
    assert isinstance(house.notes.failures[0], NotFound)
    assert house.notes.told == [("failed", 1)]
    assert len(house.ranges) == 1
    assert isinstance(content.last_error, NotFound)


def test_a_paused_worker_does_not_swallow_a_demand(house: House) -> None:
    """While three transfers pause before their next try, a demand of another content goes out at once."""
    bad = [house.add(generated(CHUNK, seed=n).read(0, CHUNK)) for n in range(10, 13)]
    good = house.add()
    for content in bad:
        house.registry.blobs[str(content.digest)] = generated(CHUNK)
    house.registry.behaviour.status = {f".*/{content.digest}": 503 for content in bad}
    for content in bad:
        house.fetcher.demand(content.segments[0])
    until(lambda: len(house.ranges) >= 12)  # their pauses are now more than a second
    before = len(house.ranges)
    house.fetcher.demand(good.segments[0])
    until(lambda: good.segments[0].durable)
    assert len(house.ranges) - before <= 2


def test_removed_while_it_comes(house: House) -> None:
    """The transfer ends by itself, nobody fails, and other contents are fetched."""
    house.registry.behaviour.rate = 4 * CHUNK
    content = house.add()
    house.fetcher.prefetch([whole(content)])
    until(lambda: content.segments[0].present > 0)
    house.fetcher.forget([content])
    house.store.remove(content)
    house.registry.behaviour.rate = None
    other = house.add(generated(CHUNK, seed=9).read(0, CHUNK))
    house.fetcher.prefetch([whole(other)])
    wait_for_state(other, "verified")
    assert house.notes.failures == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["stall", "rate"])
def test_leaving_while_bytes_are_awaited(tmp_path: Path, how: str) -> None:
    """A transfer in the middle of a body ends at once when the fetcher does, and its bytes stay."""
    with FakeRegistry() as registry, Store(tmp_path / "store") as store:
        if how == "stall":
            registry.behaviour.stall_after = 100_000
        else:
            registry.behaviour.rate = 100_000
        with Client(Hosts(tmp_path / "certs.d"), Credentials(None)) as client:
            content = add(store, DATA, source=f"{registry.address}/models/tiny", digest=registry.put_blob(DATA))
            fetcher = Fetcher(
                store, client, lambda c: [Repository.parse(c.source)], connections=2, per_host=2, stall=60
            )
            with fetcher:
                fetcher.prefetch([whole(content)])
                assert wait_until(lambda: content.present > 0, 10)
        assert 0 < content.present < SIZE
