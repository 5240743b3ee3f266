"""Segments that go: in which order, what stays known of them, and what late comers find."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from modelvold.errors import Mismatch, Refused
from modelvold.oci.digest import Digest
from modelvold.store.segment import Segment
from modelvold.store.showing import Verify
from modelvold.store.store import Store

from tests.lab.program import wait_until
from tests.store.keeping import Notes, add, fill, fill_all, wait_for_state

SIZE = 4096
DATA = os.urandom(4 * SIZE)


def _evict(store: Store, segments: Sequence[Segment]) -> None:
    store._withdrawal.evict(segments)


def test_a_verified_content_stays_so_and_takes_only_its_own_bytes(tmp_path: Path) -> None:
    """What comes again is shown when it is complete and right; something else is dropped, before anybody can have read it."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        segment = content.segments[2]
        _evict(store, [segment])
        assert (content.state, segment.present, segment.digest) == (
            "verified",
            0,
            sha256(DATA[2 * SIZE : 3 * SIZE]).digest(),
        )
        segment.hosts = ("bad.example",)
        wrong = DATA[: 2 * SIZE] + bytes(SIZE) + DATA[3 * SIZE :]
        with segment.writer() as writer:
            first, last = memoryview(wrong[2 * SIZE : 3 * SIZE - 1]), memoryview(wrong[3 * SIZE - 1 : 3 * SIZE])
            writer.append(first)
            store.on_appended(writer, first)
            assert segment.shown == 0, "withheld until it is complete"
            writer.append(last)
            with pytest.raises(Mismatch, match=r"bad\.example"):
                store.on_appended(writer, last)
        assert (segment.present, segment.path.stat().st_size, segment.shown) == (0, 0, 0)
        assert content.suspects == {"bad.example"}
        fill(store, segment, DATA)
        assert segment.shown == SIZE
        assert wait_until(lambda: content.is_durable, 10)
        assert content.state == "verified"


def test_the_digest_outlives_the_daemon(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        _evict(store, content.segments[1:])
    with Store(tmp_path) as store:
        [content] = store.contents()
        assert content.state == "verified"
        assert content.present == SIZE
        assert [segment.withheld for segment in content.segments] == [False, True, True, True]
        for segment in content.segments[1:]:
            with pytest.raises(Mismatch):
                fill(store, segment, bytes(4 * SIZE))
        fill_all(store, content, DATA)
        assert wait_until(lambda: content.is_durable, 10)


def test_rot_is_not_called_a_verified_digest(tmp_path: Path) -> None:
    """A segment that is no longer what was recorded leaves no digest behind, and its content must be verified anew."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        content.segments[0].path.write_bytes(bytes(SIZE))
        _evict(store, content.segments[:1])
        assert (content.state, content.segments[0].digest) == ("unverified", None)
        fill(store, content.segments[0], DATA)
        wait_for_state(content, "verified")


def test_what_was_lost_is_verified_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.withdraw(content.segments[:1])
        assert content.state == "unverified"
        assert store.catalog.contents()[0].state == "unverified"


def test_a_sync_under_way_records_nothing_that_has_gone(tmp_path: Path) -> None:
    """A segment evicted between its sync and its record must not be recorded: its file is empty, or holds other bytes."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        segment = content.segments[0]
        held = threading.Event()
        record = store._durability._record

        def late(batch: object) -> None:
            held.wait(10)
            record(batch)  # type: ignore[arg-type]

        store._durability._record = late
        fill(store, segment, DATA)
        store.withdraw([segment])
        held.set()
        fill(store, content.segments[1], DATA)
        assert wait_until(lambda: content.segments[1].durable, 10)
        assert not segment.durable
        assert store.catalog.segments(content.id)[0].fingerprint is None


def test_nobody_appends_to_what_is_leaving(tmp_path: Path) -> None:
    """And nothing of it is shown, while the reads that were allowed before have their second."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        segment = content.segments[0]

        class Late(Notes):
            def on_leaving(self, segments: Sequence[Segment]) -> None:
                super().on_leaving(segments)
                assert (segment.shown, segment.path.stat().st_size) == (0, 100)
                with pytest.raises(Refused):
                    writer.append(memoryview(DATA[100:200]))

        store.watch(notes := Late(store))
        with segment.writer() as writer:
            writer.append(memoryview(DATA[:100]))
            store.withdraw([segment])
            with pytest.raises(Refused):
                writer.append(memoryview(DATA[:100]))
        assert notes.told == [("leaving", 0), ("missing", 0)]
        fill(store, segment, DATA)


def test_two_who_evict_the_same(tmp_path: Path) -> None:
    """Each segment goes once."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.watch(notes := Notes(store))
        threads = [threading.Thread(target=_evict, args=(store, content.segments)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(notes.told) == sorted((what, n) for what in ("leaving", "missing") for n in range(4))
        assert content.state == "verified"


@pytest.mark.parametrize("verify", [Verify.SEGMENT, Verify.LAYER])
def test_what_may_be_read_before_it_matches(tmp_path: Path, verify: Verify) -> None:
    """`segment`: nothing of an incomplete one. `layer`: nothing before the layer's digest has matched; then all of it is open."""
    with Store(tmp_path, verify=verify) as store:
        content = add(store, DATA, SIZE)
        store.watch(notes := Notes(store))
        first = content.segments[0]
        fill(store, first, DATA, 100)
        assert first.shown == 0
        fill(store, first, DATA)
        assert first.shown == (SIZE if verify is Verify.SEGMENT else 0)
        for segment in content.segments[1:]:
            fill(store, segment, DATA)
        wait_for_state(content, "verified")
        assert wait_until(lambda: sum(what == "durable" for what, _ in notes.told) == 4, 10)
        assert all(segment.is_open for segment in content.segments)
    with Store(tmp_path, verify=verify) as store:
        [content] = store.contents()
        assert all(segment.is_open for segment in content.segments), "what was verified is open at once"


def test_a_wrong_layer_is_shown_to_nobody(tmp_path: Path) -> None:
    with Store(tmp_path, verify=Verify.LAYER) as store:
        content = add(store, DATA, SIZE, digest=Digest.of(b"other"))
        fill_all(store, content, DATA)
        wait_for_state(content, "quarantined")
        assert wait_until(lambda: content.present == 0, 10)
        assert store.wrong_segments == 4
