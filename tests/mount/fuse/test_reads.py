"""Reads of missing bytes: they wait and nobody else does, and they end whatever happens."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from modelvold.mount.fuse.wire import ALL

from tests.lab.program import wait_until
from tests.mount.fuse.scene import MIB, Scene, Store, digest, said, scene, store_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PAGE = (4 * MIB, 4096)


def missing(folder: Path) -> Store:
    return store_of(folder, {"here": 2 * MIB, "model": 64 * MIB})


def bring(made: Scene, store: Store, number: int) -> None:
    store.fill(number)
    made.reads.shown([(store.inode(number), ALL)])
    made.allow(store, number)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`here` is in segment 0; the page of `model` in segment 2, behind its header."""
    return missing(tmp_path / "store")


def test_a_read_waits_for_its_bytes(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="random")
        made.wait_for_reads(1)
        ((_, inode, need, pid),) = made.daemon.asked
        assert (inode, need, pid) == (store.inode(2), PAGE[0] - 2 * MIB + PAGE[1], reader.pid)
        bring(made, store, 2)
        assert said(reader) == [digest(store.of(store.entries[1], *PAGE))]
        assert made.reads.waiting() == 0


def test_a_mapped_read_waits_too(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="mapped")
        assert wait_until(lambda: made.reads.waiting() > 0, 10)
        bring(made, store, 1)
        bring(made, store, 2)
        while reader.poll() is None:
            made.allow(store, 2)
        assert said(reader) == [digest(store.of(store.entries[1], *PAGE))]


def test_who_waits_holds_nobody_up(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        waiting = [made.read("one/model", (n * MIB, 4096), how="random") for n in range(2, 62)]
        made.wait_for_reads(60)
        store.fill(0)
        made.reads.shown([(store.inode(0), ALL)])
        began = time.monotonic()
        reader = made.read("one/here", (0, 2 * MIB))
        assert said(reader) == [digest(store.of(store.entries[0], 0, 2 * MIB))]
        assert time.monotonic() - began < 5
        assert made.reads.waiting() == 60
        for number in range(1, len(store.extents)):
            bring(made, store, number)
        for n, reader in enumerate(waiting, 2):
            assert said(reader) == [digest(store.of(store.entries[1], n * MIB, 4096))]


def test_readahead_that_waits_holds_nobody_up(tmp_path: Path, store: Store) -> None:
    """Hundreds of them: the kernel's own bound is 12."""
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        readers = [made.read("one/model", (n * MIB, MIB)) for n in range(2, 62)]
        assert wait_until(lambda: made.reads.waiting() >= 60, 10)
        store.fill(0)
        made.reads.shown([(store.inode(0), ALL)])
        for how in ("plain", "mapped"):
            here = made.read("one/here", (0, 2 * MIB), how=how)
            assert said(here) == [digest(store.of(store.entries[0], 0, 2 * MIB))]
        for number in range(1, len(store.extents)):
            bring(made, store, number)
        assert wait_until(lambda: made.reads.waiting() == 0, 20)
        for n, reader in enumerate(readers, 2):
            assert said(reader) == [digest(store.of(store.entries[1], n * MIB, MIB))]


def test_what_is_shown_in_part_is_read_in_part(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        store.fill(2, 3 * MIB)
        made.reads.shown([(store.inode(2), 3 * MIB)])
        first, behind = (2 * MIB, 4096), (5 * MIB, 4096)
        assert said(made.read("one/model", first, how="random")) == [digest(store.of(store.entries[1], *first))]
        made.read("one/model", behind, how="random")
        made.wait_for_reads(1)


def test_a_refusal_is_an_error(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="random")
        while reader.poll() is None:
            for question, *_ in list(made.daemon.asked):
                made.reads.answered(question, False, 0)
            time.sleep(0.01)
        assert said(reader) == ["EIO"]


def test_a_killed_reader_goes_at_once(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="direct")
        made.wait_for_reads(1)
        began = time.monotonic()
        reader.kill()
        assert reader.wait(5) == -signal.SIGKILL
        assert time.monotonic() - began < 2
        made.wait_for_reads(0)
        assert made.daemon.withdrawn == [made.daemon.asked[0][0]]


def test_a_killed_reader_of_readahead_goes_at_once(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        for how in ("plain", "mapped"):
            reader = made.read("one/model", PAGE, how=how)
            assert wait_until(lambda: made.reads.waiting() > 0, 10)
            time.sleep(0.1)
            reader.kill()
            assert reader.wait(5) == -signal.SIGKILL


def test_a_signal_that_does_not_kill_is_no_answer(tmp_path: Path, store: Store) -> None:
    """And the one that comes later is seen, though the kernel tells of the first alone."""
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="direct")
        made.wait_for_reads(1)
        reader.send_signal(signal.SIGCHLD)  # ignored
        reader.send_signal(signal.SIGWINCH)
        os.kill(reader.pid, signal.SIGSTOP)
        os.kill(reader.pid, signal.SIGCONT)
        time.sleep(1.5)
        assert made.reads.waiting() == 1
        reader.kill()
        assert reader.wait(5) == -signal.SIGKILL
        made.wait_for_reads(0)


def test_without_a_daemon_present_bytes_flow_and_missing_ones_are_late(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path, deadline=1.0) as made:
        made.show("one", store, filled=False)
        store.fill(0)
        made.reads.shown([(store.inode(0), ALL)])
        first = made.read("one/model", PAGE, how="direct")
        made.wait_for_reads(1)
        time.sleep(1.5)
        assert made.reads.waiting() == 1  # there is one: how long it takes is its own affair
        made.reads.disconnected()
        began = time.monotonic()
        assert said(made.read("one/here", (0, 2 * MIB))) == [digest(store.of(store.entries[0], 0, 2 * MIB))]
        assert said(first) == ["EIO"]
        assert 0.9 < time.monotonic() - began < 5
        assert said(made.read("one/model", PAGE, how="direct")) == ["EIO"]
        assert len(made.daemon.asked) == 1


def test_the_next_daemon_is_asked_again(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="random")
        made.wait_for_reads(1)
        made.reads.disconnected()
        late = made.read("one/model", (20 * MIB, 4096), how="random")
        made.wait_for_reads(2)
        made.reads.connected()
        first, second, third = made.daemon.asked
        assert (first[1:], first[0] != second[0]) == (second[1:], True)
        made.reads.answered(first[0], False, 0)  # the former daemon's
        assert third[1] == store.inode(3)
        bring(made, store, 2)
        bring(made, store, 3)
        assert said(reader) == [digest(store.of(store.entries[1], *PAGE))]
        assert said(late) == [digest(store.of(store.entries[1], 20 * MIB, 4096))]


def test_a_file_that_never_has_what_is_said_is_an_error(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", PAGE, how="direct")
        answered = 0
        while reader.poll() is None and answered < 1000:
            for question, *_ in made.daemon.asked[answered:]:
                answered += 1
                made.reads.answered(question, True, ALL)
            time.sleep(0.01)
        assert said(reader) == ["EIO"]
        assert answered < 20


def test_a_segment_that_is_gone_is_an_error(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.path(2).unlink()
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        assert said(made.read("one/model", PAGE, how="direct")) == ["EIO"]
    assert "deny read" in caplog.text


def test_a_read_over_two_segments_waits_for_each(tmp_path: Path, store: Store) -> None:
    piece = (MIB, 2 * MIB)  # the header's end, and what follows
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        reader = made.read("one/model", piece, how="direct")
        for number in (1, 2):
            inode = store.inode(number)
            assert wait_until(lambda inode=inode: any(of == inode for _, of, _, _ in made.daemon.asked), 10)
            bring(made, store, number)
        while reader.poll() is None:
            made.allow(store, 2)
        assert said(reader) == [digest(store.of(store.entries[1], *piece))]


def test_pages_that_are_waited_for_do_not_hold_up_dropping(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        store.fill(2)
        made.reads.shown([(store.inode(2), 3 * MIB)])
        assert said(made.read("one/model", (2 * MIB, 4096), how="random"))
        reader = made.read("one/model", (6 * MIB, 4096), how="random")
        made.wait_for_reads(1)
        node = (made.target / "one/model").stat().st_ino
        assert made.reads.free(node, 2 * MIB, 18 * MIB) == [(2 * MIB, 6 * MIB), (6 * MIB + 4096, 18 * MIB)]
        made.kernel.invalidate(node, 0, 64 * MIB)
        assert made.reads.waiting() == 1
        bring(made, store, 2)
        assert said(reader) == [digest(store.of(store.entries[1], 6 * MIB, 4096))]


def test_whoever_waits_when_it_is_unmounted_is_let_go(tmp_path: Path, store: Store) -> None:
    with scene(tmp_path) as made:
        made.show("one", store, filled=False)
        made.read("one/model", PAGE, how="mapped")
        made.read("one/model", (20 * MIB, 4096), how="direct")
        assert wait_until(lambda: made.reads.waiting() >= 2, 10)
