"""The power goes, again and again, while models come, are read, make room for each other and are removed; and each time the machine
finds a store in which nothing is that is not so.

The store lies on an ext4 on an image, and a cut is one reflink copy of it: by us at a random moment, or by the daemon itself at one of
its points, between a sync and a record, a record and a truncation. Somebody else writes and syncs on the same disk, so that the file
system commits at moments of its own. Of every cut the whole store is compared: as it is found, since not even a recovery may have to see
a record that is not true; and as it is recovered, by opening it or by starting the daemon on it.

That it can fail was seen: with the catalog at `synchronous=NORMAL`, of 30 cuts four to nine had lost what was called durable, and two to
eight had brought back the rows of contents or volumes whose files were gone.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelvold.errors import Failure
from modelvold.linux.files import sync_filesystem
from modelvold.points import Point
from modelvold.store.store import Store

from tests.fault.killer import Act, Board, cut_of
from tests.fault.node import Node, push
from tests.fault.remains import Key, look, recorded_now
from tests.fault.tally import Tally
from tests.lab import disks
from tests.lab.disks import Disk
from tests.lab.registry import Registry
from tests.lab.relay import Relay

pytestmark = pytest.mark.system

_CUTS = 30
#: Bytes a second, so that there is always something half here.
_RATE = 60e6
#: How many of them are recovered by a daemon, which then brings and shows everything: seconds each.
_BY_DAEMON = 2
#: Between two steps that must be on the disk in this order.
_POINTS = (
    Point.CATALOG_BEGUN,
    Point.CATALOG_COMMITTED,
    Point.STORE_APPENDED,
    Point.STORE_SYNCED,
    Point.STORE_RECORDED,
    Point.STORE_DIGEST_KEPT,
    Point.STORE_UNRECORDED,
    Point.STORE_TRUNCATED,
    Point.STORE_JUDGED,
    Point.STORE_MOVED,
    Point.STORE_REMOVED,
)
_SEED = os.environ.get("FAULT_SEED", "1")
_LIBC = ctypes.CDLL(None, use_errno=True)
#: sync_file_range(2)
_WRITE = 2


@dataclass(frozen=True, slots=True)
class Cut:
    """`durable` is what the catalog told before and after it: that must be on the disk."""

    image: Path
    durable: set[Key]
    moment: str


class Bench:
    """The node on the disk, and how its power is cut."""

    def __init__(self, disk: Disk, node: Node) -> None:
        self._disk = disk
        self.node = node

    def at_any_moment(self) -> Cut:
        before = recorded_now(self.node.root)
        image = self._disk.cut()
        return Cut(image, before & recorded_now(self.node.root), "no point")

    def at_point(self, point: Point, hit: int, patience: float = 2.0) -> Cut | None:
        """None where nobody came by."""
        self.node.board.order(Act.CUT, point, hit)
        end = time.monotonic() + patience
        before = last = recorded_now(self.node.root)
        while not self.node.board.is_done and time.monotonic() < end:
            before, last = last, recorded_now(self.node.root)
            time.sleep(0.005)
        is_done = self.node.board.is_done
        self.node.board.cancel()
        if not is_done:
            return None
        image = self._disk.image.with_name("at-point.cut")
        cut_of(self._disk.image).rename(image)
        return Cut(image, before & recorded_now(self.node.root), f"{point.name} hit {hit}")


@contextmanager
def _going_on(*works: Callable[[], object]) -> Iterator[None]:
    """Each of these is done over and over in a thread of its own, and must not fail but by a Failure, which it is answered with."""
    ending = threading.Event()
    failed: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        while not ending.is_set():
            try:
                with suppress(Failure):
                    work()
            except BaseException as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=run, args=(work,), name=f"going-on-{n}") for n, work in enumerate(works)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _pull_and_remove(node: Node) -> None:
    """What is pulled makes room for itself, at the cost of what is not used; it is given up where there is none."""
    name = random.choice(list(node.models))
    node.remove(name) if random.random() < 0.4 else node.pull(name, patience=2.0)


def _mount_and_read(node: Node) -> None:
    """Demands make room at the cost of whatever there is."""
    name = random.choice(list(node.models))
    node.mount(name)
    try:
        node.read(name, 0.3, may_be_denied=True)
    finally:
        node.unmount(name)


def _write_and_sync(disk: Path, root: Path) -> None:
    """Somebody else's files, written, replaced and synced; and whatever else makes a kernel write back."""
    place = disk / "others"
    place.mkdir(exist_ok=True)
    path = place / str(random.randrange(8))
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(random.choice((100, 4096, 1 << 18))))
        what = random.random()
        if what < 0.5:
            os.fsync(file.fileno())
        elif what < 0.6:
            sync_filesystem(file.fileno())
    with suppress(FileNotFoundError):  # what is removed meanwhile
        some = random.choice(list((root / "content").glob("*/sha256/*/*/*")) or [path])
        with some.open("rb") as file:
            _LIBC.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_WRITE))
    time.sleep(random.uniform(0, 0.03))


@pytest.mark.timeout(1800)
def test_nothing_is_found_that_is_not_so(folder: Path, tally: Tally, rounds: int) -> None:
    if missing := disks.missing():
        pytest.skip(missing)
    order = random.Random(_SEED)
    truncating = 0
    with ExitStack() as life:
        registry = life.enter_context(Registry(folder / "registry"))
        relay = life.enter_context(Relay(registry.port, 0.0, _RATE))
        models = push(registry, relay.host)
        disk = life.enter_context(Disk(folder))
        board = life.enter_context(Board(folder / "board"))
        node = life.enter_context(Node(disk.path, registry, models, board, tally, disk.image))
        bench = Bench(disk, node)
        works = [
            lambda: _pull_and_remove(node),
            lambda: _mount_and_read(node),
            lambda: _write_and_sync(disk.path, node.root),
        ]
        with _going_on(*works):
            for number in range(_CUTS * rounds):
                time.sleep(order.uniform(0.02, 0.3))
                cut = bench.at_point(order.choice(_POINTS), order.randint(1, 3)) if number % 2 else None
                cut = cut or bench.at_any_moment()
                with disk.after(cut.image) as at:
                    by_daemon = (number + 1) % (_CUTS // _BY_DAEMON) == 0
                    truncating += _check(at, cut, node, by_daemon=by_daemon, board=folder / "after-board")
        called_wrong = re.findall(r".* (?:mismatch|rot|quarantine) .*", node.daemon.log_text())
        assert not called_wrong, "\n".join(called_wrong)
    assert truncating >= _CUTS * rounds // 3, f"only {truncating} cuts hit something that had to go"


def _check(at: Path, cut: Cut, node: Node, *, by_daemon: bool, board: Path) -> bool:
    """What the machine finds after the cut. Whether a recovery had to truncate something."""
    root = at / "daemon/store"
    found = look(root)
    is_truncating = bool(found.to_go)
    node.tally.cut(truncating=is_truncating)
    try:
        found.check(node.sources, node.tally)
        assert cut.durable <= found.recorded, f"called durable and lost: {sorted(cut.durable - found.recorded)}"
        if by_daemon:
            _go_on(at, node, board)
        else:
            with Store(root):
                pass
            recovered = look(root)
            recovered.check(node.sources, node.tally)
            assert recovered.unrecorded == []
            assert recovered.recorded == found.recorded, "what was right is dropped"
    except BaseException as error:
        error.add_note(f"cut at {cut.moment}, seed {_SEED}")
        raise
    return is_truncating


def _go_on(at: Path, node: Node, board: Path) -> None:
    """The machine comes up: everything is there or comes, and every byte that is read is right."""
    with Board(board) as unused, Node(at, node.registry, node.models, unused, node.tally) as again:
        node.tally.restart()
        report = again.report()
        assert report.node.store_state == "ok"
        assert look(again.root).unaccounted == []
        for name in again.models:
            again.mount(name)
            again.read(name)
            again.unmount(name)
            again.collect()  # what a pull kept mounted until it ended
    look(at / "daemon/store").check(node.sources, node.tally)
