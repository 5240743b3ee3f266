"""Bit rot: found in what the disk holds, not in what memory remembers; what has rotted goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from modelvold.store.scrub import Pace
from modelvold.store.store import Store

from tests.lab.program import wait_until
from tests.store.keeping import Notes, add, fill, fill_all, wait_for_state

SIZE = 4096
DATA = os.urandom(4 * SIZE)
FAST = 1 << 40


def _pace() -> Pace:
    return Pace(FAST, time.sleep)


def test_a_rotten_segment_goes_and_comes_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert [looked.is_right for looked in store.scrub(content, _pace())] == [True] * 4
        store.watch(notes := Notes(store))
        path = content.segments[2].path
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        assert [looked.is_right for looked in store.scrub(content, _pace())] == [True, True, False, True]
        assert notes.told == [("leaving", 2), ("missing", 2)]
        assert (content.state, content.present, store.wrong_segments) == ("unverified", 3 * SIZE, 1)
        fill(store, content.segments[2], DATA)
        wait_for_state(content, "verified")


def test_it_is_written_down_and_waited_for(tmp_path: Path) -> None:
    """The background scrub looks at what was not looked at for its period, and writes down when it did."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert wait_until(lambda: store.catalog.contents()[0].scrubbed > 0, 5), "verifying reads it all, too"
        content.segments[1].path.write_bytes(bytes(SIZE))
        store.catalog.scrubbed(content.id, int(time.time()) - 1000)
    with Store(tmp_path, scrub_every=500.0):
        time.sleep(0.1)
    with Store(tmp_path, scrub_every=0.2) as store:
        [content] = store.contents()
        assert wait_until(lambda: content.segments[1].present == 0, 20), "the rotten one was found"
        assert wait_until(lambda: store.catalog.contents()[0].scrubbed > time.time() - 100, 10)


def test_the_pace_is_kept(tmp_path: Path) -> None:
    """So many bytes a second, by what it waits; no clock decides this."""
    waited: list[float] = []
    pace = Pace(1000, waited.append)
    for _ in range(10):
        pace.spend(1000)
    assert len(waited) == 10
    assert 9 < waited[-1] <= 10
