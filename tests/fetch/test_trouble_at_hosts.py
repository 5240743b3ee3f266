"""Registries that fail while somebody waits, or in the middle of a prefetch: who is asked again, when, and what is said of it."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path

import pytest
from modelvold import errors
from modelvold.fetch.fetcher import whole
from modelvold.layer.extent import CHUNK
from modelvold.store.content import Content
from modelvold.store.room import Bounds, Lease
from modelvold.store.segment import Segment
from modelvold.store.showing import Verify

from tests.fakes.registry import Auth, Behaviour, generated
from tests.fetch.house import DATA, SIZE, WRONG, bytes_of, house, until
from tests.lab.program import wait_until
from tests.store.keeping import fill_all, wait_for_state

# -- wrong bytes


def _as_evicted(segment: Segment) -> Segment:
    """As if it had been here, verified: what comes must match."""
    segment.digest = hashlib.sha256(DATA[segment.extent.start : segment.extent.end]).digest()
    segment.withheld = True
    return segment


def test_a_wrong_segment_is_fetched_from_another_host(tmp_path: Path) -> None:
    """At once, and the one that sent it is asked no more for that content."""
    with house(tmp_path, mirrors=1) as made:
        content = made.add()
        made.mirrors[0].put_blob(WRONG, content.digest)
        for number in (2, 4):
            segment = _as_evicted(content.segments[number])
            made.fetcher.demand(segment)
            until(lambda segment=segment: segment.durable)
            assert segment.shown == segment.padded
            assert segment.path.read_bytes() == DATA[segment.extent.start : segment.extent.end]
        assert content.suspects == {made.mirrors[0].address}
        assert [len(host.requests_for(content.digest)) for host in (made.mirrors[0], made.registry)] == [1, 2]
        assert made.notes.failures == []
        assert content.last_error is None


def test_a_segment_that_is_wrong_everywhere_fails_at_once(tmp_path: Path) -> None:
    """Each host is asked once, and whoever waits is told who they were."""
    with house(tmp_path, mirrors=2) as made:
        content = made.add()
        hosts = [*made.mirrors, made.registry]
        for host in hosts:
            host.put_blob(WRONG, content.digest)
        segment = _as_evicted(content.segments[1])
        made.fetcher.demand(segment)
        until(lambda: bool(made.notes.failures))
        assert isinstance(made.notes.failures[0], errors.Mismatch)
        assert all(host.address in str(made.notes.failures[0]) for host in hosts)
        assert [len(host.requests_for(content.digest)) for host in hosts] == [1, 1, 1]
        assert (segment.present, segment.shown) == (0, 0)
        made.fetcher.demand(segment)  # nobody is asked
        until(lambda: len(made.notes.failures) == 2)
        assert "wrong bytes came from" in str(made.notes.failures[1])
        assert [len(host.requests_for(content.digest)) for host in hosts] == [1, 1, 1]


def test_a_wrong_content_is_fetched_once_more_from_another_host(tmp_path: Path) -> None:
    """All of it, since nobody knows which part was wrong."""
    with house(tmp_path, mirrors=1) as made:
        content = made.add()
        made.mirrors[0].put_blob(DATA[:-1] + b"?", content.digest)
        made.fetcher.prefetch([whole(content)])
        wait_for_state(content, "verified")
        assert bytes_of(content) == DATA
        assert content.suspects == {made.mirrors[0].address}
        assert made.registry.bytes_sent() == SIZE


def test_a_content_that_is_wrong_everywhere_is_quarantined(tmp_path: Path) -> None:
    """After each host was asked once; then there is nobody to start over with."""
    with house(tmp_path, mirrors=1) as made:
        content = made.add()
        for host in (made.mirrors[0], made.registry):
            host.put_blob(DATA[:-1] + b"?", content.digest)
        made.fetcher.prefetch([whole(content)])
        wait_for_state(content, "quarantined")
        assert [host.bytes_sent() for host in (made.mirrors[0], made.registry)] == [SIZE, SIZE]
        assert not made.fetcher.start_over(content)


def test_nothing_of_a_layer_is_shown_before_all_of_it_is_right(tmp_path: Path) -> None:
    """`[store] verify = layer`: a demand of one segment brings all of them, its own first."""
    with house(tmp_path, verify=Verify.LAYER) as made:
        content = made.add()
        made.fetcher.demand(content.segments[4])
        wait_for_state(content, "verified")
        until(lambda: all(segment.is_open for segment in content.segments))
        assert f"bytes={4 * CHUNK}-{5 * CHUNK - 1}" in made.ranges
        assert made.registry.bytes_sent() == SIZE
        assert bytes_of(content) == DATA


# -- slow, silent, cut


@pytest.mark.parametrize("how", ["drips", "is silent", "resets", "drips headers"])
def test_a_mirror_that_is_of_no_use_is_left_in_the_middle(tmp_path: Path, how: str) -> None:
    """The rest comes from the next host; what came stays."""
    with house(tmp_path, mirrors=1, stall=0.5) as made:
        content = made.add()
        made.mirrors[0].behaviour = {
            "drips": Behaviour(rate=20, piece=1),
            "is silent": Behaviour(stall_after=300_000),
            "resets": Behaviour(reset_after=300_000),
            "drips headers": Behaviour(drip_headers=0.1),
        }[how]
        made.fetcher.demand(content.segments[0])
        until(lambda: content.segments[0].durable)
        assert content.segments[0].path.read_bytes() == DATA[:CHUNK]
        assert len(made.mirrors[0].requests_for(content.digest)) == 1
        assert made.mirrors[0].bytes_sent() + made.registry.bytes_sent() >= CHUNK
        assert made.notes.failures == []


def test_failing_segments_hold_no_worker(tmp_path: Path) -> None:
    """A dozen demands of a content whose registry says 503 rest; those of another are asked for as if nothing were."""
    with house(tmp_path) as made:
        bad = made.add(generated(12 * CHUNK, seed=7).read(0, 12 * CHUNK))
        good = made.add()
        made.registry.behaviour = Behaviour(only=f".*{bad.digest}", status={".*": 503})
        for segment in bad.segments:
            made.fetcher.demand(segment)
        until(lambda: bad.last_error is not None)
        for segment in good.segments:
            made.fetcher.demand(segment)
        until(lambda: good.is_durable)
        assert made.notes.failures == []


def test_a_registry_that_lets_requests_hang_leaves_workers_to_others(tmp_path: Path) -> None:
    """Once requests have hung in vain, no more than half of the workers wait for the next ones."""
    with house(tmp_path, stall=4) as made:
        bad = made.add(generated(12 * CHUNK, seed=20).read(0, 12 * CHUNK))
        good = made.add()
        made.registry.behaviour = Behaviour(only=f".*{bad.digest}", hang=True)
        for segment in bad.segments:
            made.fetcher.demand(segment)
        until(lambda: bad.last_error is not None)
        time.sleep(0.5)  # in which as many hang again as may
        made.fetcher.demand(good.segments[0])
        assert wait_until(lambda: good.segments[0].durable, 2.5), "it waited for hanging requests to end"


def test_what_is_seen_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line a cause for a content, however many of its segments fail; one more when all is well."""
    caplog.set_level(logging.INFO, "modelvold.fetch")
    with house(tmp_path) as made:
        content = made.add(size=16 << 10)
        assert len(content.segments) == 384
        made.registry.behaviour.status = {".*": 503}
        for segment in content.segments[:-1]:
            made.fetcher.demand(segment)
        until(lambda: len(made.ranges) >= 400)
        made.registry.behaviour.status = {".*": 502}
        until(lambda: "answered 502" in caplog.text)
        made.registry.behaviour.status = {}
        until(lambda: content.present >= SIZE - (16 << 10))
        until(lambda: "goes on" in caplog.text)
        failed = [line for line in caplog.messages if "failed error=" in line]
        assert [("503" in line, "502" in line) for line in failed] == [(True, False), (False, True)]
        assert caplog.text.count("goes on") == 1
        assert content.last_error is None


# -- what a person must mend


def test_credentials_that_end_are_waited_for_while_somebody_waits(tmp_path: Path) -> None:
    """A pod's secret is changed in the middle: the prefetch ends and says why, a demand goes on asking, and both go on with what
    the next pod brings."""
    with house(tmp_path, auth=Auth()) as made:
        content = made.add(generated(CHUNK, seed=5).read(0, CHUNK) * 64)  # four requests
        made.log_in()
        made.registry.behaviour.rate = 32 * CHUNK
        made.fetcher.prefetch([whole(content)])
        until(lambda: content.present > CHUNK)
        made.registry.auth = Auth(password="changed")
        until(lambda: not made.fetcher.is_prefetching(content))
        assert isinstance(content.last_error, errors.Unauthorized)
        made.registry.behaviour = Behaviour()
        made.fetcher.demand(content.segments[-1])
        time.sleep(0.5)
        assert made.notes.failures == []
        made.log_in("changed")
        wait_for_state(content, "verified")
        assert content.last_error is None


def test_a_token_that_ends_is_renewed_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every token is forgotten, three times in the middle of a prefetch; seldom enough that a new one is used before it goes too."""
    with house(tmp_path, auth=Auth(bearer=True)) as made:
        content = made.add(generated(CHUNK, seed=6).read(0, CHUNK) * 64)
        made.log_in()
        made.registry.behaviour.rate = 32 * CHUNK
        made.fetcher.prefetch([whole(content)])
        for quarter in (1, 2, 3):
            until(lambda least=quarter * content.length // 4: content.present >= least)
            made.registry.forget_tokens()
        wait_for_state(content, "verified")
        assert content.last_error is None
        assert "failed" not in caplog.text


@pytest.mark.parametrize(("status", "noun"), [(401, errors.Unauthorized), (403, errors.Forbidden)])
def test_who_is_refused_is_not_asked_for_often(tmp_path: Path, status: int, noun: type[errors.Failure]) -> None:
    """Two times within the first two seconds, and a prefetch once: a registry that counts locks no account."""
    with house(tmp_path) as made:
        content = made.add()
        made.registry.behaviour.status = {".*": status}
        made.registry.behaviour.headers = {"WWW-Authenticate": "Negotiate"}
        made.fetcher.prefetch([whole(content)])
        until(lambda: not made.fetcher.is_prefetching(content))
        assert len(made.ranges) == 1
        assert isinstance(content.last_error, noun)
        made.fetcher.demand(content.segments[0])
        time.sleep(2.5)
        assert len(made.ranges) in {2, 3}
        assert made.notes.failures == []
        made.fetcher.release(content.segments[0])
        before = len(made.ranges)
        time.sleep(2.5)
        assert len(made.ranges) == before


# -- no room


def test_a_demand_waits_for_room_and_a_prefetch_ends(tmp_path: Path) -> None:
    """Nobody is told of a failure, and nothing is asked of the registry, until room is made."""
    with house(tmp_path, bounds=Bounds(quota=3 * CHUNK)) as made:
        old = made.add(generated(2 * CHUNK, seed=1).read(0, 2 * CHUNK))
        fill_all(made.store, old, generated(2 * CHUNK, seed=1).read(0, 2 * CHUNK))
        wait_for_state(old, "verified")
        made.store.serve(_Keeps(old))
        content = made.add()
        made.fetcher.demand(content.segments[0])
        until(lambda: content.segments[0].durable)
        made.fetcher.prefetch([whole(content)])
        until(lambda: isinstance(content.last_error, errors.Exhausted))
        assert not made.fetcher.is_prefetching(content)
        made.fetcher.demand(content.segments[1])
        time.sleep(0.5)
        assert len(made.ranges) == 1
        assert made.notes.failures == []
        made.store.remove(old)
        until(lambda: content.segments[1].durable)


class _Keeps:
    """Leases on this content and the next."""

    def __init__(self, old: Content) -> None:
        self._leases = {old.id: Lease.HELD, old.id + 1: Lease.HELD}

    def leases(self) -> dict[int, Lease]:
        return self._leases

    def start_over(self, _content: Content) -> bool:
        return False

    def on_wrong(self, _segments: object) -> None:
        pass


def test_a_segment_truncated_while_it_is_written_is_fetched_again(tmp_path: Path) -> None:
    """Nobody who waits is told of a failure."""
    with house(tmp_path) as made:
        content = made.add()
        made.registry.behaviour.rate = 2 * CHUNK
        made.fetcher.demand(content.segments[0])
        until(lambda: content.segments[0].present > 0)
        made.registry.behaviour.rate = None
        content.segments[0].truncate()
        until(lambda: content.segments[0].durable)
        assert content.segments[0].path.read_bytes() == DATA[:CHUNK]
        assert made.notes.failures == []


# -- the end


@pytest.mark.timeout(30)
def test_leaving_while_an_answer_is_awaited(tmp_path: Path) -> None:
    """With the client closed after the fetcher was told to stop, nobody waits for a silent registry, and nothing is said of it."""
    with house(tmp_path, stall=60) as made:
        content = made.add()
        made.registry.behaviour.hang = True
        made.fetcher.prefetch([whole(content)])
        made.fetcher.demand(content.segments[-1])
        until(lambda: len(made.ranges) == 2)
        made.fetcher.stop()
        made.client.close()
        until(lambda: not any(thread.name.startswith("fetch-") for thread in threading.enumerate()))
        assert content.last_error is None
        assert made.notes.failures == []
