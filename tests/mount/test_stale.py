"""Pages of wrong bytes, in the page cache of real mounts: they go, or those who keep them are named and the others are spared."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from modelvold.errors import Failing, Mismatch
from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.linux import mounts, pages
from modelvold.mount import mapped, waits
from modelvold.mount.backend import Volume
from modelvold.mount.pieces import Piece
from modelvold.mount.stale import Poisoned, Stale
from modelvold.mount.table import MountTable
from modelvold.mount.where import pieces_of
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store import withdrawal
from modelvold.store.catalog import NewContent
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.tree import Tree, merge

from tests.lab import needs
from tests.lab.mapper import Mapper
from tests.lab.program import wait_until
from tests.mount.harness import DATA, Scene, scene
from tests.store.keeping import SOURCE, fill

pytestmark = pytest.mark.system

WRONG = os.urandom(len(DATA))
#: In segment 1, and all of it.
PAGE = (CHUNK + 8192, 4096)
SEGMENT = (CHUNK, CHUNK)


@dataclass
class Stage:
    """A volume with wrong bytes in segment 1, mounted by a table."""

    scene: Scene
    table: MountTable
    stale: Stale
    renewed: list[str]  # what was told of

    @property
    def volume(self) -> Volume:
        return self.scene.volume

    @property
    def path(self) -> Path:
        """What new consumers open."""
        return self.table.path("one") / "file"

    def read(self, piece: tuple[int, int]) -> str:
        """By a process of its own, on the page cache as it is."""
        script = "import hashlib,os,sys; f = os.open(sys.argv[1], 0); a, n = int(sys.argv[2]), int(sys.argv[3])"
        script += "; print(hashlib.sha256(os.pread(f, n, a)).hexdigest())"
        words = ["python3", "-I", "-S", "-c", script, str(self.path), *map(str, piece)]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        return "EIO" if "Errno 5" in ran.stderr else ran.stdout.strip()

    def cached(self, root: int | None = None) -> int:
        """Pages of segment 1, of what new consumers open or of the mount behind the descriptor `root`."""
        file = os.open("file" if root else self.path, os.O_RDONLY, dir_fd=root)
        try:
            return pages.cached(file, CHUNK, 2 * CHUNK)
        finally:
            os.close(file)

    def withdraw(self) -> Poisoned | None:
        """As when its digest did not match."""
        segments = [self.scene.content.segments[1]]
        self.scene.store.withdraw(segments)
        return self.stale.drop(self.volume, segments)

    def mend(self) -> None:
        """The right bytes come."""
        self.scene.fill(1)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    if reason := needs.missing_for_lazy(tmp_path):
        pytest.skip(reason)
    monkeypatch.setattr(withdrawal, "GRACE", 0.1)  # nobody reads meanwhile
    with ExitStack() as life:
        made = life.enter_context(scene(tmp_path))
        table = MountTable(made.backend, made.run / "volumes", lambda _: "", lambda *_: None)
        table.ensure(made.volume)
        life.callback(mounts.unmount, table.path("one"), detach=True)
        tree = merge([toc_of_raw("file", len(DATA), 0o444, 0)])
        renewed: list[str] = []
        stale = life.enter_context(Stale(table, lambda _: tree, renewed.append))
        made.fill(0)
        made.fill(2)
        fill(made.store, made.content.segments[1], WRONG)
        yield Stage(made, table, stale, renewed)


def right(piece: tuple[int, int]) -> str:
    return sha256(DATA[piece[0] : sum(piece)]).hexdigest()


def wrong(piece: tuple[int, int]) -> str:
    return sha256(WRONG[piece[0] : sum(piece)]).hexdigest()


def test_what_was_read_and_is_not_mapped_goes(stage: Stage) -> None:
    """Of the segment concerned alone; who reads then has the bytes that come."""
    assert stage.read(SEGMENT) == wrong(SEGMENT)
    assert stage.withdraw() is None
    assert stage.cached() == 0
    stage.mend()
    assert stage.read(SEGMENT) == right(SEGMENT)
    assert not stage.stale.is_to_recheck


def test_one_that_maps_it_sees_the_right_bytes(stage: Stage) -> None:
    with Mapper(stage.path) as mapper:
        assert mapper.read(*SEGMENT) == wrong(SEGMENT)
        assert stage.withdraw() is None
        assert stage.cached() == 0
        assert stage.renewed == []
        stage.mend()
        assert mapper.read(*SEGMENT) == right(SEGMENT)
        assert stage.read(SEGMENT) == right(SEGMENT)


def test_one_that_maps_it_has_no_byte_that_does_not_come(stage: Stage) -> None:
    """In quarantine: the program that has the file mapped ends with SIGBUS, others get EIO."""
    with Mapper(stage.path) as mapper:
        mapper.read(*SEGMENT)
        assert stage.withdraw() is None
        stage.scene.store.fail([stage.scene.content.segments[1]], Mismatch("other bytes"))
        assert mapper.read(*PAGE) == ""
        assert mapper.ended_by == signal.SIGBUS
        assert stage.read(PAGE) == "EIO"


def test_two_that_map_it_are_named_and_others_are_spared(stage: Stage) -> None:
    """They go on with the wrong bytes; a new consumer has the right ones; with their end it is over."""
    with Mapper(stage.path) as first, Mapper(stage.path) as second, Mapper(stage.path) as reader_of_another:
        assert {first.read(*SEGMENT), second.read(*SEGMENT)} == {wrong(SEGMENT)}
        assert reader_of_another.read(0, CHUNK) == right((0, CHUNK))
        names = sorted([first.name, second.name, reader_of_another.name])  # it maps them too, read or not
        poisoned = stage.withdraw()
        assert poisoned == stage.stale.poisoned("one")
        assert poisoned is not None
        assert (poisoned.volume, poisoned.size, sorted(poisoned.names)) == ("one", CHUNK, names)
        assert stage.renewed == ["one"]
        stage.mend()
        assert {first.read(*SEGMENT), second.read(*SEGMENT)} == {wrong(SEGMENT)}
        assert stage.read(SEGMENT) == right(SEGMENT)
        assert stage.stale.recheck() == [poisoned]
        reader_of_another.end()
        second.end()
        assert stage.stale.recheck() == []
        assert stage.stale.poisoned("one") is None
        assert first.read(*SEGMENT) == right(SEGMENT)
    assert stage.stale.recheck() == []
    assert not stage.stale.is_to_recheck


def test_with_their_end_it_is_over(stage: Stage) -> None:
    with Mapper(stage.path) as first, Mapper(stage.path) as second:
        first.read(*PAGE), second.read(*PAGE)
        assert stage.withdraw() is not None
    assert stage.stale.recheck() == []
    assert not stage.stale.is_to_recheck


def test_mapped_twice_by_one(stage: Stage) -> None:
    with Mapper(stage.path, "twice") as mapper:
        assert mapper.read(*SEGMENT) == wrong(SEGMENT)
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert poisoned.names == (mapper.name,)
        stage.mend()
        assert stage.read(SEGMENT) == right(SEGMENT)
    assert stage.stale.recheck() == []


def test_locked_in_memory_until_it_is_no_more(stage: Stage) -> None:
    with Mapper(stage.path) as mapper:
        mapper.tell("lock", *SEGMENT)
        assert mapper.read(*SEGMENT) == wrong(SEGMENT)
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert (poisoned.size, poisoned.names) == (CHUNK, (mapper.name,))
        stage.mend()
        assert stage.read(SEGMENT) == right(SEGMENT)
        mapper.tell("unlock", *SEGMENT)
        assert stage.stale.recheck() == []
        assert mapper.read(*SEGMENT) == right(SEGMENT)


def test_huge_pages_reach_over_segments(stage: Stage) -> None:
    """One page of 2 MiB has the bytes of segments 0 and 1: the wrong half goes."""
    with Mapper(stage.path, "huge", "random") as mapper:
        assert mapper.read(*SEGMENT) == wrong(SEGMENT)
        assert "FilePmdMapped:      2048 kB" in Path(f"/proc/{mapper.pid}/smaps").read_text()
        assert stage.withdraw() is None
        stage.mend()
        assert mapper.read(0, 2 * CHUNK) == right((0, 2 * CHUNK))


def test_huge_pages_of_two(stage: Stage) -> None:
    with Mapper(stage.path, "huge", "random") as first, Mapper(stage.path, "huge", "random") as second:
        assert {first.read(*SEGMENT), second.read(*SEGMENT)} == {wrong(SEGMENT)}
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert (poisoned.size, sorted(poisoned.names)) == (CHUNK, sorted([first.name, second.name]))
        stage.mend()
        assert stage.read(SEGMENT) == right(SEGMENT)


def test_those_in_other_mount_namespaces_are_found(stage: Stage, tmp_path: Path) -> None:
    """By another path, of which the daemon knows nothing; the old mount stays within reach while that is there."""
    (tmp_path / "elsewhere").mkdir()
    script = f'mount --bind {stage.path.parent} {tmp_path}/elsewhere; umount {stage.path.parent}; exec "$@"'
    before = ["unshare", "-m", "sh", "-c", script, "sh"]
    elsewhere = tmp_path / "elsewhere/file"
    with Mapper(elsewhere, before=before) as first, Mapper(stage.path) as second:
        assert {first.read(*SEGMENT), second.read(*SEGMENT)} == {wrong(SEGMENT)}
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert sorted(poisoned.names) == sorted([first.name, second.name])
        second.end()
        assert stage.stale.recheck() == []
        stage.mend()
        assert first.read(*SEGMENT) == right(SEGMENT)
        assert stage.stale.is_to_recheck


def test_wrong_bytes_once_more_reach_old_mounts_too(stage: Stage, tmp_path: Path) -> None:
    """A consumer that stayed on the mount of before is cured of what it has read since."""
    (tmp_path / "place").mkdir()
    mounts.bind_readonly(stage.path.parent, tmp_path / "place")
    with Mapper(tmp_path / "place/file") as first, Mapper(stage.path) as second:
        first.read(*PAGE), second.read(*PAGE)
        assert stage.withdraw() is not None
        second.end()
        assert stage.stale.recheck() == []
        fill(stage.scene.store, stage.scene.content.segments[1], WRONG)
        assert first.read(*SEGMENT) == stage.read(SEGMENT) == wrong(SEGMENT)
        assert stage.withdraw() is None
        stage.mend()
        assert first.read(*SEGMENT) == stage.read(SEGMENT) == right(SEGMENT)
    mounts.unmount(tmp_path / "place")
    assert stage.stale.recheck() == []
    assert not stage.stale.is_to_recheck


def test_below_overlays(stage: Stage, tmp_path: Path) -> None:
    """Where the volume is a layer of an ordinary container's file system."""
    upper, work, at = (tmp_path / name for name in ("upper", "work", "at"))
    for folder in (upper, work, at):
        folder.mkdir()
    options = f"lowerdir={stage.path.parent},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
    try:
        with Mapper(at / "file") as first, Mapper(at / "file") as second:
            assert {first.read(*SEGMENT), second.read(*SEGMENT)} == {wrong(SEGMENT)}
            poisoned = stage.withdraw()
            assert poisoned is not None
            assert sorted(poisoned.names) == sorted([first.name, second.name])
            second.end()
            assert stage.stale.recheck() == []
            stage.mend()
            assert first.read(*SEGMENT) == right(SEGMENT)
            assert stage.stale.is_to_recheck  # the overlay keeps the old mount
    finally:
        mounts.unmount(at)
    assert stage.stale.recheck() == []
    assert not stage.stale.is_to_recheck


def test_reads_that_wait_poison_nothing(stage: Stage) -> None:
    """Their pages are cached, locked and without bytes: not stale, but looked at again until they are gone."""
    assert stage.read((CHUNK, 4096)) == wrong((CHUNK, 4096))
    page = (2 * CHUNK - 8192, 4096)
    with Mapper(stage.path, "random") as first, Mapper(stage.path, "random") as second:
        segment = stage.scene.content.segments[1]
        stage.scene.store.withdraw([segment])
        for mapper in (first, second):
            mapper.begin("read", *page)
        stage.scene.wait_for_reads(1)
        assert stage.stale.drop(stage.volume, [segment]) is None
        assert stage.cached() == 1
        assert stage.stale.is_to_recheck
        stage.mend()
        assert {first.answer(), second.answer()} == {right(page)}
    assert stage.stale.recheck() == []
    assert not stage.stale.is_to_recheck


def test_many_are_not_all_named(stage: Stage) -> None:
    with Mapper(stage.path) as mapper:
        mapper.read(*PAGE)
        mapper.tell("fork", PAGE[0], mapped.MOST_NAMED + 8)
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert len(poisoned.names) == mapped.MOST_NAMED + 1
        assert poisoned.names[0] == mapper.name
        assert poisoned.names[-1] == "9 others"
    assert stage.stale.recheck() == []


def test_a_program_that_says_nothing_is_no_good_news(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is taken for stale, until it can be looked at."""
    with Mapper(stage.path) as mapper:
        mapper.read(*SEGMENT)
        with monkeypatch.context() as broken:
            broken.setattr(mapped.sys, "executable", "/bin/false")
            assert stage.withdraw() == Poisoned("one", CHUNK, ("a process that could not be found",))
            stage.mend()
            assert stage.read(SEGMENT) == right(SEGMENT)
        assert stage.stale.recheck() == []
        assert mapper.read(*SEGMENT) == right(SEGMENT)


def test_a_process_that_cannot_be_looked_at_stops_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in a page fault and holds its address space locked, so that paging out hangs beyond SIGKILL. It is named, as the
    other one that maps the pages; the program that hangs is left behind and ends with the fault."""
    monkeypatch.setattr(mapped, "_LOOK", 1.0)
    monkeypatch.setattr(mapped, "_PATIENCE", 1.0)
    monkeypatch.setattr(waits, "COOL_DOWN", 0.0)
    missing = (3 * CHUNK + 8192, 4096)
    with Mapper(stage.path, "random") as waiting, Mapper(stage.path) as other:
        assert {waiting.read(*PAGE), other.read(*PAGE)} == {wrong(PAGE)}
        waiting.tell("fault", *missing)
        stage.scene.wait_for_reads(1)
        stage.scene.gate.on_failed([stage.scene.content.segments[3]], Mismatch("not yet"))
        assert wait_until(lambda: len(stage.scene.gate.waiting(stage.scene.content.segments)) == 1, 10)
        waiting.begin("map")  # the kernel asks a second time for one access, and holds the lock then
        assert wait_until(lambda: _sleeping(waiting) == 2, 10)
        poisoned = stage.withdraw()
        assert poisoned is not None
        assert sorted(poisoned.names) == sorted([waiting.name, other.name])
        stage.mend()
        assert stage.read(PAGE) == right(PAGE)
        stage.scene.fill(3)
    assert stage.stale.recheck() == []


def _sleeping(mapper: Mapper) -> int:
    """How many of its threads wait for something in the kernel, and cannot be interrupted."""
    tasks = Path(f"/proc/{mapper.pid}/task").iterdir()
    return sum((task / "stat").read_text().rpartition(") ")[2].startswith("D") for task in tasks)


def test_nobody_meets_an_empty_folder_while_it_is_mounted_anew(stage: Stage) -> None:
    ending, missed = threading.Event(), []

    def look() -> None:
        while not ending.is_set():
            try:
                stage.path.stat()
            except OSError as error:
                missed.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    devices = set()
    for _ in range(50):
        devices.add(stage.path.stat().st_dev)
        stage.table.renew("one")
    ending.set()
    looking.join()
    assert missed == []
    assert len(devices) > 1
    assert [entry.mount_point for entry in mounts.mountinfo()].count(str(stage.path.parent)) == 1
    assert list(stage.path.parent.parent.iterdir()) == [stage.path.parent]


def test_what_cannot_be_mounted_anew_is_mounted_no_more(stage: Stage) -> None:
    """And is mounted by whoever needs it next."""
    image = stage.volume.image
    image.rename(image.with_suffix(".away"))
    with pytest.raises(Failing, match="had to be mounted anew, and cannot be"):
        stage.table.renew("one")
    assert not stage.table.is_mounted("one")
    assert list(stage.path.parent.parent.iterdir()) == []
    image.with_suffix(".away").rename(image)
    stage.table.ensure(stage.volume)
    assert stage.read((0, 4096)) == right((0, 4096))


def test_a_daemon_that_ends_in_the_middle_leaves_the_new_mount(stage: Stage) -> None:
    aside = stage.scene.run / "volumes/one.new"
    aside.mkdir()
    stage.scene.backend.mount(stage.volume, aside)
    mounts._attach(mounts.clone(aside), stage.path.parent, beneath=True)
    new = aside.stat().st_dev
    assert stage.path.stat().st_dev != new
    table = MountTable(stage.scene.backend, aside.parent, lambda _: stage.scene.note, lambda *_: None)
    table.adopt([stage.volume])
    assert table.is_mounted("one")
    assert stage.path.stat().st_dev == new
    assert list(aside.parent.iterdir()) == [stage.path.parent]


def test_after_a_start_what_was_found_wrong_is_dropped(stage: Stage) -> None:
    """The daemon that truncated it may have died before it got to that."""
    with Mapper(stage.path) as first, Mapper(stage.path) as second:
        first.read(*PAGE), second.read(*PAGE)
        assert stage.read(SEGMENT) == wrong(SEGMENT)
        stage.scene.store.withdraw(stage.scene.content.segments)
        stage.scene.content.reason = "other bytes"
        stage.stale.adopt(stage.volume, stage.scene.content.segments)
        assert sorted(stage.stale.names("one")) == sorted([first.name, second.name])
        stage.scene.store.fail(stage.scene.content.segments, Mismatch("other bytes"))
        assert stage.read(PAGE) == "EIO"


def test_after_a_start_what_is_missing_is_read_anew(stage: Stage) -> None:
    """By new consumers, if not by all: that its bytes were wrong nobody says, so nobody is named for them."""
    with Mapper(stage.path) as first, Mapper(stage.path) as second:
        assert {first.read(*PAGE), second.read(*PAGE)} == {wrong(PAGE)}
        more = (CHUNK + 65536, 4096)
        assert first.read(*more) == wrong(more)
        stage.scene.store.withdraw([stage.scene.content.segments[1]])
        stage.stale.adopt(stage.volume, stage.scene.content.segments[1:2])
        assert stage.stale.names("one") == ()
        assert not stage.stale.is_to_recheck
        stage.mend()
        assert first.read(*more) == right(more)
        assert {first.read(*PAGE), second.read(*PAGE)} == {wrong(PAGE)}
        assert stage.read(SEGMENT) == right(SEGMENT)


def test_what_is_no_mount_has_no_pages(tmp_path: Path, stage: Stage) -> None:
    """As with the backend `directory`, and with a volume that is not mounted."""
    mounts.unmount(stage.path.parent)
    assert stage.withdraw() is None
    assert not stage.stale.is_to_recheck
    stage.table.ensure(stage.volume)
    mounts.bind(tmp_path, stage.path.parent)


def test_which_pieces_lie_in_segments(tmp_path: Path) -> None:
    """Of files that share a segment, that lie in several, and of layers of the same name."""
    with Store(tmp_path) as store:
        small = _content(store, b"a" * 4096, [0, 1024, 4096])
        large = _content(store, b"b" * 4096, [0, 2048, 3072, 4096])
        toc = Toc(
            (_entry("d/one", 0, 100), _entry("d/two", 512, 600), _entry("none", 1536, 0), _entry("far", 2048, 9)), 4096
        )
        tree: Tree = merge([toc, toc_of_raw("large", 4096, 0o444, 0)])
        volume = Volume("v", tmp_path, b"", (small, large))
        of = lambda *segments: list(pieces_of(tree, volume, segments))  # noqa: E731
        assert of(small.segments[0]) == [Piece("d/one", 0, 100), Piece("d/two", 0, 512)]
        assert of(small.segments[1]) == [Piece("d/two", 512, 600), Piece("far", 0, 9)]
        assert of(*small.segments) == [Piece("d/one", 0, 100), Piece("d/two", 0, 600), Piece("far", 0, 9)]
        assert of(large.segments[1]) == [Piece("large", 2048, 3072)]
        assert of(large.segments[2], large.segments[0]) == [Piece("large", 0, 2048), Piece("large", 3072, 4096)]
        assert of() == []


def _content(store: Store, data: bytes, bounds: list[int]) -> Content:
    cut = [Extent(ContentOffset(a), ContentOffset(b)) for a, b in pairwise(bounds)]
    return store.add([NewContent(Digest.of(data), Reading.RAW, SOURCE, len(data), cut)])[0]


def _entry(path: str, offset: int, size: int) -> Entry:
    return Entry(path, Kind.FILE, mode=0o444, offset=ContentOffset(offset), size=size)
