"""The gate, with real events of real mounts: who waits, for how long, and what they read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from modelvold.errors import Unreachable
from modelvold.layer.extent import CHUNK
from modelvold.linux import fanotify
from modelvold.mount.probe import probe
from modelvold.mount.waits import Waiting
from modelvold.store.segment import Segment

from tests.lab import needs
from tests.lab.check import settled
from tests.lab.program import wait_until
from tests.mount.harness import PAGE, SEGMENTS, Scene, right, said, scene
from tests.store.keeping import wait_for_state

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _able(tmp_path: Path) -> None:
    if reason := needs.missing_for_lazy(tmp_path):
        pytest.skip(reason)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def test_present_bytes_are_read_without_asking_for_them(stage: Scene) -> None:
    """A segment that is there in part serves that part."""
    stage.fill(1, 64 << 10)
    assert said(stage.read(PAGE)) == right(PAGE)
    assert stage.gate.events > 0
    assert stage.bringer.demands == []


def test_a_read_waits_for_what_is_missing(stage: Scene) -> None:
    """Until its own bytes are there, not until the segment is; then it reads the right ones."""
    reader = stage.read(PAGE)
    stage.wait_for_reads(1)
    assert stage.bringer.demands == [1]
    (waiting,) = stage.gate.waiting(stage.content.segments)
    assert (waiting.pid, waiting.need) == (reader.pid, 8192 + 4096)
    stage.fill(1, 4096)
    stage.wait_for_reads(1)
    stage.fill(1, 16384)
    assert said(reader) == right(PAGE)
    stage.wait_for_reads(0)


def test_many_reads_wait_for_one_segment(stage: Scene) -> None:
    """All are let go by the bytes they wait for."""
    pieces = [(2 * CHUNK + n * 16384, 4096) for n in range(24)]
    readers = [stage.read(piece) for piece in pieces]
    stage.wait_for_reads(24)
    stage.fill(2, 12 * 16384)
    stage.wait_for_reads(12)
    stage.fill(2)
    assert [said(reader) for reader in readers] == [right(piece) for piece in pieces]
    assert set(stage.bringer.demands) == {2}


def test_across_segments(stage: Scene) -> None:
    """One read of two segments asks for both."""
    across = (2 * CHUNK - 8192, 16384)
    reader = stage.read(across)
    assert wait_until(lambda: stage.bringer.demands == [1], 10)
    stage.fill(1)
    assert wait_until(lambda: stage.bringer.demands == [1, 2], 10) or reader.poll() is None
    stage.fill(2)
    assert said(reader) == right(across)


def test_a_failure_is_told_to_all_who_wait_and_cools_down(stage: Scene) -> None:
    """EIO at once; who asks again just then has EIO without a new request; bytes end it."""
    readers = [stage.read(PAGE) for _ in range(3)]
    assert wait_until(lambda: len(stage.gate.waiting(stage.content.segments)) >= 1, 10)
    stage.store.fail([stage.content.segments[1]], Unreachable("no registry"))
    assert [said(reader) for reader in readers] == [["EIO"]] * 3
    asked = len(stage.bringer.demands)
    assert said(stage.read(PAGE)) == ["EIO"]
    assert len(stage.bringer.demands) == asked
    assert "no registry" in stage.gate.last_error
    stage.fill(1)
    assert said(stage.read(PAGE)) == right(PAGE)


def test_the_deadline_denies_and_releases(tmp_path: Path) -> None:
    """Without a byte of progress a read is denied, and the bringer told that nobody waits."""
    with scene(tmp_path, deadline=0.5) as stage:
        assert said(stage.read(PAGE)) == ["EIO"]
        assert stage.bringer.releases[:1] == [1]
        assert "no progress for 0.5 s" in stage.gate.last_error
        assert stage.gate.waiting(stage.content.segments) == []


def test_progress_moves_the_deadline(tmp_path: Path) -> None:
    """A slow registry is waited for as long as bytes come."""
    with scene(tmp_path, deadline=1.0) as stage:
        reader = stage.read((CHUNK + 512 * 1024, 4096))
        stage.wait_for_reads(1)
        for step in range(1, 9):
            assert not wait_until(lambda: reader.poll() is not None, 0.3)
            stage.fill(1, step * 65536)
        stage.fill(1)
        assert said(reader) == right((CHUNK + 512 * 1024, 4096))
        assert stage.bringer.releases == []


def test_durable_segments_raise_no_events(stage: Scene) -> None:
    """Once recorded, the kernel reads them alone."""
    stage.fill_all()
    wait_for_state(stage.content, "verified")
    before = stage.gate.events
    pieces = [(n * CHUNK + 40960, 65536) for n in range(SEGMENTS)]
    assert said(stage.read(*pieces)) == right(*pieces)
    assert stage.gate.events == before
    assert stage.bringer.demands == []


def test_withdrawn_segments_are_asked_about_again(stage: Scene) -> None:
    """Their reads wait and have the right bytes, fetched anew."""
    stage.fill_all()
    wait_for_state(stage.content, "verified")
    stage.store.withdraw([stage.content.segments[1]])
    reader = stage.read(PAGE, (0, 4096))
    stage.wait_for_reads(1)
    assert stage.bringer.demands == [1]
    stage.fill(1)
    assert said(reader) == right(PAGE, (0, 4096))
    assert wait_until(lambda: stage.content.segments[1].durable, 5)


def test_marks_go_with_the_last_watcher(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of segments with bytes, of those alone (a large model has tens of thousands that are empty), and of those that lose theirs in
    that very moment."""
    full, lost, empty, _ = stage.content.segments
    stage.fill(full.number)
    stage.fill(lost.number)
    assert wait_until(lambda: full.durable and lost.durable, 5)
    unmarked: list[Path] = []
    monkeypatch.setattr(fanotify, "unignore", lambda _, path: unmarked.append(path))
    drop = stage.gate._waits.drop

    def dropped(segment: Segment) -> list[Waiting]:
        if segment is empty:
            lost.truncate()
        return drop(segment)

    monkeypatch.setattr(stage.gate._waits, "drop", dropped)
    stage.gate.unwatch(stage.content.segments)
    assert unmarked == [full.path, lost.path]


def test_nothing_of_a_leaving_segment_is_allowed(stage: Scene) -> None:
    """Though its bytes are still there; and asking for them would be in vain, so it is asked for when they are gone."""
    stage.fill_all()
    wait_for_state(stage.content, "verified")
    withdrawing = threading.Thread(target=stage.store.withdraw, args=([stage.second],))
    withdrawing.start()
    assert wait_until(lambda: stage.second.leaving, 5)
    assert wait_until(lambda: not stage.second.durable, 5)
    reader = stage.read(PAGE)
    stage.wait_for_reads(1)
    assert (stage.second.present, stage.bringer.demands) == (CHUNK, [])
    withdrawing.join()
    assert stage.bringer.demands == [1]
    assert stage.second.path.stat().st_size == 0
    stage.wait_for_reads(1)
    stage.fill(1)
    assert said(reader) == right(PAGE)


def test_who_queued_for_a_segment_that_stays_is_let_go(stage: Scene) -> None:
    """Nobody tells the gate of that; it looks for itself."""
    stage.fill(1, 64 << 10)
    stage.second.leave()
    reader = stage.read(PAGE)
    stage.wait_for_reads(1)
    stage.second.stay()
    assert said(reader) == right(PAGE)
    assert stage.gate.denied == 0


def test_a_failure_of_what_is_leaving_is_nobodys(stage: Scene) -> None:
    """A transfer that was under way finds it leaving, and fails: those who wait are served by the one that follows."""
    stage.fill(1, 64 << 10)
    stage.second.leave()
    reader = stage.read(PAGE)
    stage.wait_for_reads(1)
    stage.store.fail([stage.second], Unreachable("truncated while it was written"))
    stage.wait_for_reads(1)
    stage.second.truncate()
    stage.second.stay()
    stage.gate.on_missing([stage.second])
    assert stage.bringer.demands == [1]
    stage.fill(1)
    assert said(reader) == right(PAGE)


def test_what_begins_to_leave_while_it_is_silenced_is_asked_about(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark that comes last is the wrong one; whoever set it looks again."""
    marked: list[bool] = []

    def late(group: int, path: Path) -> None:
        if not marked:
            marked.append(True)
            stage.second.leave()
            stage.gate.on_leaving([stage.second])
        ignore(group, path)

    ignore = fanotify.ignore
    with monkeypatch.context() as patched:
        patched.setattr(fanotify, "ignore", late)
        stage.fill(1)
        assert wait_until(lambda: bool(marked) and stage.second.durable, 5)
    reader = stage.read(PAGE)
    stage.wait_for_reads(1)
    stage.second.stay()
    assert said(reader) == right(PAGE)


def test_a_drip_holds_no_reader(tmp_path: Path) -> None:
    """Bytes that come now and then are no progress, and do not end the cool-down either."""
    with scene(tmp_path, deadline=0.5) as stage:
        reader = stage.read((CHUNK + 512 * 1024, 4096))
        for count in range(512, 1 << 20, 512):
            if wait_until(lambda: reader.poll() is not None, 0.02):
                break
            stage.fill(1, count)
        assert said(reader) == ["EIO"]
        assert 0 < stage.second.present < 65536
        assert stage.bringer.demands == [1]


def test_a_withheld_segment_is_waited_for_as_long_as_its_content_grows(tmp_path: Path) -> None:
    """`[store] verify = layer`: what must match first is all of it."""
    with scene(tmp_path, deadline=1.0) as stage:
        for segment in stage.content.segments:
            segment.withheld = True
        stage.fill(1, 65536)
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        for step in range(1, 9):
            assert not wait_until(lambda: reader.poll() is not None, 0.3)
            stage.fill(2, step * 65536)
        for segment in stage.content.segments:
            segment.withheld = False
        stage.gate.on_grown(stage.second)
        assert said(reader) == right(PAGE)


def test_a_read_touches_its_segment(stage: Scene) -> None:
    """Present or not: what is read of it says who is used last."""
    stage.fill(1, 64 << 10)
    before = time.monotonic()
    assert said(stage.read(PAGE)) == right(PAGE)
    assert stage.second.touched >= before
    assert stage.content.segments[3].touched == 0.0


def test_one_cause_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many read, however many segments, and again after the cool-down."""
    with scene(tmp_path, deadline=0.4) as stage, caplog.at_level("INFO", "modelvold.mount"):
        for segment in stage.content.segments:
            segment.failure = Unreachable("no registry")
        for _ in range(2):
            readers = [stage.read((n % SEGMENTS * CHUNK + n * 8192, 4096)) for n in range(24)]
            assert [said(reader) for reader in readers] == [["EIO"]] * 24
            for segment in stage.content.segments:
                stage.gate._waits.drop(segment)  # as if the cool-down were over
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert "no registry" in caplog.text


def test_a_killed_reader_harms_nobody(stage: Scene) -> None:
    """It ends although its bytes never came; the other one is served; the volume is unmounted, its descriptors closed."""
    killed, other = stage.read(PAGE), stage.read((3 * CHUNK, 4096))
    stage.wait_for_reads(2)
    killed.kill()
    killed.communicate(timeout=10)
    stage.fill(3)
    assert said(other) == right((3 * CHUNK, 4096))
    (left,) = stage.gate.waiting(stage.content.segments)
    stage.backend.unmount(stage.volume, stage.target, [])
    assert stage.gate.waiting(stage.content.segments) == []
    assert not Path(f"/proc/self/fd/{left.fd}").exists()
    stage.backend.mount(stage.volume, stage.target)


def test_a_gate_that_ends_denies_and_the_next_one_serves(tmp_path: Path) -> None:
    """No reader hangs on a daemon that ended; the same mount is served by its successor, which asks about missing bytes alone."""
    with scene(tmp_path) as stage:
        stage.fill(0)
        assert wait_until(lambda: stage.content.segments[0].durable, 5)
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        stage.end_gate()
        assert said(reader) == ["EIO"]
        assert said(stage.read(PAGE)) == ["EIO"]
        stage.open_gate(20)
        stage.backend.serve([(stage.volume, stage.note)])
        before = stage.gate.events
        assert said(stage.read((0, 4096))) == right((0, 4096))
        assert stage.gate.events == before
        reader = stage.read(PAGE)
        stage.wait_for_reads(1)
        stage.fill(1)
        assert said(reader) == right(PAGE)


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    """Everything holds on this machine, and no file, mount, thread, process or descriptor remains."""
    store, run = tmp_path / "store", tmp_path / "run"
    store.mkdir()
    run.mkdir()
    with settled(tmp_path), ExitStack():
        findings = probe(store, run)
    assert [line for line in findings.lines if not line.is_good] == []
    assert findings.choose("auto") == ("lazy", "seen working at start")
    assert len(findings.lines) == 13
    assert [list(folder.iterdir()) for folder in (store, run)] == [[], []]
