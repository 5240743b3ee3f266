"""Volumes through FUSE, where what serves them dies: the daemon, the process, or who reads. Right bytes or an error, and never a hang.

Every wait has an end that is far beyond what it takes: a read that is never answered fails the test by that. How long things take is
printed, and decides nothing.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import xxhash
from modelvold.lending.report import VolumeReport
from modelvold.rpc.control import ControlClient

from tests.fault.tally import Tally
from tests.lab.backends import FUSE, LAZY
from tests.lab.content import Generated
from tests.lab.crowd import Crowd, End
from tests.lab.daemon import Daemon, Settings
from tests.lab.mounts import mounted, unmount_below
from tests.lab.program import wait_until
from tests.lab.reader import Piece, Reader, random_pieces
from tests.lab.registry import Registry
from tests.lab.relay import Relay

pytestmark = pytest.mark.system

_MIB = 1 << 20
_SEGMENT = 16 * _MIB
_FILES = {f"weights/model-{n}.safetensors": Generated(_SEGMENT + 513 * n, 400 + n) for n in range(6)}
_CONTENTS = list(_FILES.values())
_SIZES = [content.size for content in _CONTENTS]
_READERS = 8
#: Bytes a second: what a round of kills takes is not all of the model.
_SLOW = 5e6
#: No byte that a test asks for comes.
_CRAWLING = 10e3
#: Seconds in which what was asked is answered, whatever happens meanwhile.
_PATIENCE = 90.0
#: What may come instead of bytes: of a mapped file SIGBUS, which is EIO here; of one whose process has died the others.
_GONE = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE}


def _source(file: int, at: int, length: int) -> bytes:
    return _CONTENTS[file].at(at, length)


@dataclass
class Stage:
    """A model shown at `here`, and at `volume`, from a registry whose line has a rate."""

    daemon: Daemon
    relay: Relay
    reference: str
    here: Path
    tally: Tally

    def shown(self) -> VolumeReport:
        with ControlClient(self.daemon.socket) as control:
            (found,) = control.report().volumes
        return found

    @property
    def volume(self) -> Path:
        return Path(self.shown().path)

    def waiting(self) -> set[int]:
        """The programs that wait for bytes."""
        return {read.pid for read in self.shown().waiting}

    def mount(self) -> None:
        with ControlClient(self.daemon.socket) as control:
            list(control.mount(self.reference, self.here))

    def remove(self) -> None:
        """Nothing of it is left."""
        with ControlClient(self.daemon.socket) as control:
            control.unmount(self.here)
            control.remove(self.reference)
            assert control.report().volumes == ()
        assert [path for path in (self.daemon.root / "content").rglob("*") if path.is_file()] == []

    def paths(self, at: Path | None = None) -> list[Path]:
        return [(at or self.here) / path for path in _FILES]

    def mounts(self) -> dict[str, int]:
        """Ids by point."""
        return {mount.point: mount.id for place in (self.daemon.run, self.here) for mount in mounted(place)}

    def kill_process(self) -> None:
        (pid,) = self.daemon.fuse_processes()
        os.kill(pid, signal.SIGKILL)
        self.tally.kill()

    def kill_daemon(self) -> None:
        self.daemon.kill9()
        self.tally.kill()

    def start_daemon(self) -> None:
        self.daemon.start()
        self.tally.restart()

    def check(self, reader: Reader, pieces: Sequence[Piece]) -> list[Piece]:
        """Of what it was asked, all that was denied."""
        return self.tally.read(pieces, reader.answers(_PATIENCE), _source, _GONE)[1]

    def read(self, reader: Reader, pieces: Sequence[Piece]) -> list[Piece]:
        reader.ask(pieces)
        return self.check(reader, pieces)

    def serves(self, at: Path) -> bool:
        """Whether somebody new opens the files there and reads right bytes."""
        order = random.Random()
        pieces = [Piece(n, order.randrange(2 * _MIB), 4096, is_mapped=n % 2 == 0) for n in order.sample(range(6), 2)]
        try:
            with Reader(self.paths(at)) as reader:
                return self.read(reader, pieces) == []
        except OSError as error:
            if error.errno not in _GONE | {errno.ENOENT}:
                raise
            return False


@contextmanager
def stage(
    folder: Path, tally: Tally, rate: float | None, *, prefetch: bool = False, deadline: int = 60
) -> Iterator[Stage]:
    """Nothing of it is left: no process, no mount but the store's own, no file."""
    here = folder / "mnt"
    here.mkdir()
    with ExitStack() as life:
        registry = life.enter_context(Registry(folder / "registry"))
        pushed = registry.push.model(_FILES)
        relay = life.enter_context(Relay(registry.port, 0.005, rate))
        life.callback(unmount_below, here)
        settings: Settings = {"fetch": {"prefetch": prefetch, "deadline": deadline}, "mount": FUSE.setting}
        daemon = life.enter_context(Daemon(folder / "daemon", settings))
        made = Stage(daemon, relay, pushed.reference.replace(registry.host, relay.host), here, tally)
        try:
            made.mount()
            yield made
            made.remove()
            assert "Traceback" not in daemon.log_text()
        except BaseException:
            print(daemon.log_text()[-12000:])
            raise
        finally:
            # What was asked in vain is not waited for.
            relay.hurry(None)
    assert [left for left in daemon.leftovers if "/volumes/" in left] == []


# -- kills


def _daemon(made: Stage, order: random.Random) -> None:
    made.kill_daemon()
    time.sleep(order.uniform(0.0, 0.3))
    made.start_daemon()


def _daemon_that_starts(made: Stage, order: random.Random) -> None:
    made.kill_daemon()
    made.daemon.begin()
    time.sleep(order.uniform(0.1, 0.9))
    made.kill_daemon()
    made.start_daemon()


def _process(made: Stage, order: random.Random) -> None:
    made.kill_process()


def _process_that_starts(made: Stage, order: random.Random) -> None:
    """Its successor, at some moment between its start and its having been told everything."""
    made.kill_process()
    assert wait_until(lambda: len(made.daemon.fuse_processes()) == 1, _PATIENCE)
    time.sleep(order.uniform(0.0, 0.7))
    made.kill_process()


def _both(made: Stage, order: random.Random) -> None:
    kills = [made.kill_daemon, made.kill_process]
    order.shuffle(kills)
    for kill in kills:
        kill()
        time.sleep(order.choice((0.0, order.uniform(0.0, 0.1))))
    if not made.daemon.is_running:
        made.start_daemon()


_KILLS = (_daemon, _process, _both, _daemon_that_starts, _process_that_starts, _process)


def test_kills_of_whatever_serves_under_eight_readers(folder: Path, tally: Tally, rounds: int) -> None:
    """Readers, read(2) and mapped, get right bytes or an error, and whoever comes after a kill gets right bytes, by the same paths. Who has
    a dead mount in another mount namespace is named by status until he ends."""
    with stage(folder, tally, _SLOW, prefetch=True) as made:
        for number in range(rounds):
            seed = random.randrange(1 << 30)
            print(f"round {number}, seed {seed}")
            order = random.Random(seed)
            with _read_on(made, order):
                for kill in order.sample(_KILLS, len(_KILLS)):
                    time.sleep(order.uniform(0.0, 0.5))
                    print(kill.__name__)
                    _kill(made, order, kill)
            made.relay.hurry(None)
            with Reader(made.paths()) as reader:
                assert made.read(reader, random_pieces(order, _SIZES, 3)) == []
            if number + 1 < rounds:
                made.remove()
                made.relay.hurry(_SLOW)
                made.mount()


def _kill(made: Stage, order: random.Random, kill: Callable[[Stage, random.Random], None]) -> None:
    volume, before = made.volume, made.daemon.fuse_processes()
    with _elsewhere() as consumer:
        kill(made, order)
        assert wait_until(lambda: made.serves(volume), _PATIENCE)
        assert wait_until(lambda: made.serves(made.here), _PATIENCE)
        is_dead = made.daemon.fuse_processes() != before
        assert (consumer in made.shown().stranded) == is_dead
    assert consumer not in made.shown().stranded


@contextmanager
def _elsewhere() -> Iterator[str]:
    """A program with a mount namespace of its own, in which everything is mounted that is here; its name."""
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert wait_until(lambda: Path(f"/proc/{running.pid}/comm").read_text().strip() == "sleep")
        try:
            yield f"sleep ({running.pid})"
        finally:
            running.kill()


@contextmanager
def _read_on(made: Stage, order: random.Random) -> Iterator[None]:
    """Readers go on meanwhile; what one of them finds wrong is raised at the end."""
    ending = threading.Event()
    wrong: list[BaseException] = []
    places = (made.here, made.volume)

    def go_on(seed: int) -> None:
        own = random.Random(seed)
        while not ending.is_set():
            try:
                with Reader(made.paths(own.choice(places))) as reader:
                    while not ending.is_set():
                        if made.read(reader, own.sample(random_pieces(own, _SIZES, 4), 6)):
                            break  # what it has open may be dead
            except OSError as error:
                if error.errno not in _GONE | {errno.ENOENT}:
                    wrong.append(error)
                    return
                time.sleep(0.05)
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=go_on, args=(order.randrange(1 << 30),)) for _ in range(_READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        made.relay.hurry(None)
        for thread in threads:
            thread.join(_PATIENCE + 10)
    assert not any(thread.is_alive() for thread in threads)
    for error in wrong:
        raise error


# -- no daemon


def test_a_missing_byte_waits_for_a_daemon_up_to_the_deadline(folder: Path, tally: Tally) -> None:
    """While what is there is read; and when one comes in time, the read goes on, on the same mount."""
    there = [Piece(0, at, _MIB, is_mapped=at % 2 == 1) for at in range(0, 12 * _MIB, 3 * _MIB + 1)]
    missing = [Piece(1, 9 * _MIB, 4096), Piece(2, 9 * _MIB + 5, 70_000, is_mapped=True)]
    with stage(folder, tally, None, deadline=1) as made, ExitStack() as life:
        one, *waiting = (life.enter_context(Reader(made.paths())) for _ in range(3))
        assert made.read(one, there) == []
        before = made.mounts()
        made.kill_daemon()
        began = time.monotonic()
        for reader, piece in zip(waiting, missing, strict=True):
            reader.ask([piece])
        _forget_pages(made.paths()[0])
        assert made.read(one, there) == []
        assert not any(reader.has_answered() for reader in waiting)
        assert [made.check(reader, [piece]) for reader, piece in zip(waiting, missing, strict=True)] == [
            [piece] for piece in missing
        ]
        print(f"EIO after {time.monotonic() - began:.1f} s")

        made.daemon.configure("fetch", deadline=60)
        made.start_daemon()
        assert made.mounts() == before
        made.daemon.stop()
        for reader, piece in zip(waiting, missing, strict=True):
            reader.ask([piece])
        assert not waiting[0].has_answered(1.5)
        assert not waiting[1].has_answered()
        made.start_daemon()
        for reader, piece in zip(waiting, missing, strict=True):
            assert made.check(reader, [piece]) == []
        assert made.mounts() == before


def test_a_process_that_hangs_is_killed(folder: Path, tally: Tally) -> None:
    """Its readers would wait for ever; by its death they are told, and who comes then is served by another one."""
    piece = Piece(3, 0, 4096)
    with stage(folder, tally, None) as made, Reader(made.paths()) as reader:
        (pid,) = made.daemon.fuse_processes()
        os.kill(pid, signal.SIGSTOP)
        reader.ask([piece])
        assert not reader.has_answered(0.5)
        made.daemon.restart()
        assert made.check(reader, [piece]) == [piece]
        assert made.serves(made.here)
        assert made.daemon.fuse_processes() != [pid]


def test_another_backend_and_back(folder: Path, tally: Tally) -> None:
    """Who has files open keeps what is there, and the process with it; whoever comes is shown the model by the daemon's own backend."""
    there, missing = [Piece(0, 0, 4 * _MIB), Piece(0, 5 * _MIB, _MIB, is_mapped=True)], [Piece(1, 3 * _MIB, 4096)]
    with stage(folder, tally, None, deadline=1) as made:
        with Reader(made.paths()) as old:
            assert made.read(old, there) == []
            (process,) = made.daemon.fuse_processes()
            made.daemon.stop()
            made.daemon.configure("mount", backend=LAZY.name)
            made.start_daemon()
            assert made.shown().backend == LAZY.name
            _forget_pages(made.paths()[0])
            assert made.read(old, there) == []
            assert made.read(old, missing) == missing
            assert made.serves(made.here)
            assert made.serves(made.volume)
            assert made.daemon.fuse_processes() == [process]
        assert wait_until(lambda: made.daemon.fuse_processes() == [])
        with Reader(made.paths()) as lazy:
            assert made.read(lazy, missing) == []
            made.daemon.stop()
            made.daemon.configure("mount", backend=FUSE.name)
            made.start_daemon()
        assert made.shown().backend == FUSE.name
        with Reader(made.paths()) as reader:
            assert made.read(reader, random_pieces(random.Random(5), _SIZES, 2)) == []


def _forget_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -- many readers


@cache
def _digest(piece: Piece) -> str:
    return xxhash.xxh3_64_hexdigest(_source(piece.file, piece.offset, piece.length))


def _is_right(ended: End, pieces: Sequence[Piece], tally: Tally) -> None:
    assert (ended.signal, ended.errno) == (0, 0), ended
    assert list(ended.digests) == [_digest(piece) for piece in pieces], "wrong bytes"
    tally.compared += sum(piece.length for piece in pieces)


@pytest.mark.parametrize("count", [8, 64])
def test_many_read_cold_mapped_files_while_all_is_fetched(folder: Path, tally: Tally, count: int) -> None:
    """Each in an order of its own; nobody blocks another for good. A stall is what a piece of one MiB took."""
    rate = 24e6
    whole = [Piece(n, at, min(_MIB, size - at), True) for n, size in enumerate(_SIZES) for at in range(0, size, _MIB)]
    pieces = [random.Random(seed).sample(whole, len(whole)) for seed in range(count)]
    with stage(folder, tally, rate, prefetch=True) as made:
        with Crowd(made.paths(), pieces) as crowd:
            ends = list(crowd.ends(_PATIENCE))
        for ended in ends:
            _is_right(ended, pieces[ended.number], tally)
        longest = max(ended.longest for ended in ends)
        print(f"{count} readers: longest stall {longest:.2f} s; a segment alone takes {_SEGMENT / rate:.2f} s")
        assert made.shown().last_error == ""


def test_who_waits_holds_up_nobody_and_can_be_killed(folder: Path, tally: Tally) -> None:
    """64 wait for bytes that do not come, by read(2) and mapped. Meanwhile somebody reads all that is there, more than once. Half of them
    are killed, and end; the others have right bytes when these come."""
    count = 64
    waits = [[Piece(1 + n % 5, _MIB * (2 + n // 5) + 4096 * n, 5000, is_mapped=n % 2 == 1)] for n in range(count)]
    there = [Piece(0, at, min(_MIB, _SIZES[0] - at)) for at in range(0, _SIZES[0], _MIB)]
    with stage(folder, tally, None) as made, Reader(made.paths()[:1]) as one:
        assert made.read(one, there) == []
        made.relay.hurry(_CRAWLING)
        with Crowd(made.paths(), waits) as crowd:
            assert wait_until(lambda: made.waiting() >= set(crowd.pids))
            for _ in range(3):
                began = time.monotonic()
                _forget_pages(made.paths()[0])
                assert made.read(one, there) == []
                print(f"{_SIZES[0] >> 20} MiB that are there in {time.monotonic() - began:.2f} s")
            assert made.waiting() >= set(crowd.pids)

            killed = set(range(0, count, 4)) | set(range(1, count, 4))
            began = time.monotonic()
            for number in killed:
                os.kill(crowd.pids[number], signal.SIGKILL)
            ends = [crowd.end(20) for _ in killed]
            print(f"{len(killed)} killed ended in {time.monotonic() - began:.2f} s")
            assert {(ended.number, ended.signal) for ended in ends} == {(number, signal.SIGKILL) for number in killed}

            made.relay.hurry(None)
            for ended in crowd.ends(_PATIENCE):
                _is_right(ended, waits[ended.number], tally)
