"""A restart without a hiccup: whoever waits for bytes goes on waiting when the daemon is killed, stopped or wedged, and is served by
the next one; and where nobody would ever answer, nobody is left waiting.

`tests.lab.systemd` stands for systemd.
"""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
from modelvold.points import EVENT, Point

from tests.fault.killer import Act, Board
from tests.fault.tally import Tally
from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Python, Settings
from tests.lab.mounts import unmount_below
from tests.lab.program import Failed, wait_until
from tests.lab.reader import Piece, Reader, random_pieces
from tests.lab.registry import Registry
from tests.lab.relay import Relay
from tests.lab.systemd import Systemd

pytestmark = pytest.mark.system

_MIB = 1 << 20
_READERS = 30
_KILLS = 20
_FILES = {f"weights/model-{n}.safetensors": Generated(16 * _MIB + 513 * n, 70 + n) for n in range(8)}
_CONTENTS = list(_FILES.values())
_SIZES = [content.size for content in _CONTENTS]
#: Bytes a second: what twenty lives take is not all of the model.
_SLOW = 2e6
#: So slow that who waits for what lies megabytes deep in a segment waits for as long as a test likes, and never sees its deadline.
_CRAWLING = 40e3
_PIECES = [Piece(0, 8 * _MIB, 4096), Piece(1, 9 * _MIB + 5, 70_000, is_mapped=True)]


def source(file: int, at: int, length: int) -> bytes:
    return _CONTENTS[file].at(at, length)


@dataclass
class Stage:
    """A model mounted at `here`, from a registry that is slow until it is hurried."""

    daemon: Daemon
    systemd: Systemd | None
    relay: Relay
    here: Path
    tally: Tally
    asked: dict[Reader, list[Piece]] = field(default_factory=dict)

    def ask(self, reader: Reader, pieces: Sequence[Piece]) -> None:
        self.asked[reader] = list(pieces)
        reader.ask(pieces)

    def wait_for(self, asking: Sequence[Reader], count: int = 2) -> None:
        """Each asks for its piece of `_PIECES`, and so many wait."""
        for reader, piece in zip(asking, _PIECES, strict=True):
            self.ask(reader, [piece])
        assert wait_until(lambda: self.waiting() >= count)

    def denied(self) -> list[Piece]:
        """Every answer to what was asked is compared; what of it was EIO."""
        denied = [piece for reader, pieces in self.asked.items() for piece in self._denied(reader, pieces)]
        self.asked.clear()
        return denied

    def _denied(self, reader: Reader, pieces: list[Piece]) -> list[Piece]:
        return self.tally.read(pieces, reader.answers(), source)[1]

    def waiting(self) -> int:
        ran = self.daemon.cli("status", "--json")
        assert ran.returncode == 0, ran.stderr
        return sum(len(volume["waiting"]) for volume in json.loads(ran.stdout)["volumes"])

    def kill(self) -> None:
        self.daemon.kill9()
        self.tally.kill()

    def start(self) -> None:
        self.daemon.start()
        self.tally.restart()

    def inherited(self) -> list[int]:
        """How many reads each daemon found waiting that took over from another."""
        return [int(count) for count in re.findall(r"inherit group reads=(\d+)", self.daemon.log_text())]


@contextmanager
def stage(
    folder: Path,
    tally: Tally,
    *,
    rate: float | None = _CRAWLING,
    files: int = 2,
    watchdog: float = 0.0,
    alone: bool = False,
    python: Python | None = None,
    prefetch: bool = False,
) -> Iterator[Stage]:
    """`alone`: without a service manager."""
    here = folder / "mnt"
    here.mkdir()
    with ExitStack() as life:
        registry = life.enter_context(Registry(folder / "registry"))
        pushed = registry.push.model(dict(list(_FILES.items())[:files]))
        relay = life.enter_context(Relay(registry.port, 0.005, rate))
        systemd = None if alone else life.enter_context(Systemd(folder, watchdog=watchdog))
        settings: Settings = {"fetch": {"prefetch": prefetch}}
        life.callback(unmount_below, here)
        daemon = life.enter_context(Daemon(folder / "daemon", settings, python=python, service=systemd))
        ran = daemon.cli("mount", pushed.reference.replace(registry.host, relay.host), here)
        assert ran.returncode == 0, f"{ran.stderr}\n{daemon.log_text()[-3000:]}"
        try:
            yield Stage(daemon, systemd, relay, here, tally)
        except BaseException:
            print(daemon.log_text()[-6000:])
            raise


@contextmanager
def readers(made: Stage, count: int) -> Iterator[list[Reader]]:
    with ExitStack() as life:
        paths = sorted(path for path in made.here.rglob("*") if path.is_file())
        yield [life.enter_context(Reader(paths)) for _ in range(count)]


def pieces_of(number: int, seed: int) -> list[Piece]:
    """Odd ones anywhere, and an eighth of all that there is: eight readers have read everything."""
    pieces = random_pieces(random.Random(seed * _READERS + number), _SIZES, 5)
    whole = sorted((p for p in pieces if p.length >= 2 * _MIB), key=lambda p: (p.file, p.offset))
    mine = whole[number % 8 :: 8] + [p for p in pieces if p.length < 2 * _MIB]
    random.Random(seed * _READERS + number).shuffle(mine)
    return mine


def run_and_kill(made: Stage, order: random.Random, *, kills: int) -> None:
    """At moments that nobody chose: after it answers, and while it starts."""
    for number in range(kills):
        if number % 4 == 3:
            made.daemon.begin()
            time.sleep(order.uniform(0.1, 0.9))
            made.kill()
            made.tally.restart()
            continue
        if not made.daemon.is_running:
            made.start()
        time.sleep(order.uniform(0.0, 0.4))
        made.kill()
    made.start()


def test_twenty_kills_under_thirty_readers(folder: Path, tally: Tally, rounds: int) -> None:
    """Must-show 4: no EIO at all, no wrong byte, and there were those who waited."""
    with (
        stage(folder, tally, rate=_SLOW / rounds, files=len(_FILES), prefetch=True) as made,
        readers(made, _READERS) as asking,
    ):
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        for number, reader in enumerate(asking):
            made.ask(reader, pieces_of(number, seed))
        run_and_kill(made, random.Random(seed), kills=_KILLS * rounds)
        made.relay.hurry(None)
        assert made.denied() == []
        inherited = made.inherited()
        assert len(inherited) >= 0.7 * _KILLS * rounds
        assert sum(inherited) >= 0.5 * _READERS * len(inherited)
        log = made.daemon.log_text()
        assert "give up group" not in log
        assert "keep segment=" in log  # and not truncated under those who were allowed to read it


def test_kills_with_nobody_to_keep_the_gate(folder: Path, tally: Tally, rounds: int) -> None:
    """As a pod: who waits gets EIO, counted and no wrong byte; on the same descriptors all is there afterwards."""
    with (
        stage(folder, tally, rate=_SLOW / rounds, files=len(_FILES), prefetch=True, alone=True) as made,
        readers(made, 8) as asking,
    ):
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        for number, reader in enumerate(asking):
            made.ask(reader, pieces_of(number, seed))
        run_and_kill(made, random.Random(seed), kills=4 * rounds)
        made.relay.hurry(None)
        assert made.denied() != []
        for number, reader in enumerate(asking):
            made.ask(reader, pieces_of(number, seed))
        assert made.denied() == []


def test_a_kill_at_the_worst_moment(folder: Path, tally: Tally) -> None:
    """An event that was taken and has no note, or an answer whose note is still there: the reader has its bytes all the same."""
    board = Board(folder / "board")
    moments = list(product((Point.GATE_TAKEN, Point.GATE_ANSWERED), (False, True)))
    with board, stage(folder, tally, rate=None, files=4, python=board.python()) as made, readers(made, 1) as [reader]:
        for number, (point, is_mapped) in enumerate(moments):
            board.order(Act.KILL, point)
            made.ask(reader, [Piece(number, 9 * _MIB, 70_000, is_mapped)])
            assert wait_until(lambda: not made.daemon.is_running)
            assert board.is_done
            tally.kill()
            made.start()
            assert made.denied() == []


def test_a_restart_is_waited_out_and_a_stop_is_not(folder: Path, tally: Tally) -> None:
    """SIGTERM is both: the service manager keeps what is kept, or closes it."""
    with stage(folder, tally) as made, readers(made, 2) as asking:
        made.wait_for(asking)
        made.daemon.restart()
        tally.restart()
        assert made.systemd
        assert sorted(made.systemd.kept) == ["gate", "pending"]
        assert wait_until(lambda: made.waiting() >= 2)
        assert made.inherited() == [2]
        assert made.daemon.stop() == 0
        assert made.denied() == _PIECES
        made.start()
        made.relay.hurry(None)
        made.wait_for(asking, 0)
        assert made.denied() == []


def test_a_start_that_fails_keeps_nobody_waiting(folder: Path, tally: Tally) -> None:
    """Its readers get EIO, the next one serves them."""
    with stage(folder, tally) as made, readers(made, 2) as asking:
        made.wait_for(asking)
        made.kill()
        with socket.socket() as other:
            other.bind(("127.0.0.1", made.daemon.metrics_port))
            other.listen()
            with pytest.raises(Failed, match=str(made.daemon.metrics_port)):
                made.daemon.start()
        assert made.denied() == _PIECES
        assert made.systemd
        assert made.systemd.kept == []
        made.relay.hurry(None)
        made.start()
        made.wait_for(asking, 0)
        assert made.denied() == []
        assert sorted(made.systemd.kept) == ["gate", "pending"]


def test_another_backend_gives_the_gate_up(folder: Path, tally: Tally) -> None:
    """Nobody would answer."""
    with stage(folder, tally) as made, readers(made, 2) as asking:
        made.wait_for(asking)
        made.kill()
        made.daemon.configure("mount", backend="complete")
        made.start()
        assert made.denied() == _PIECES
        assert made.systemd
        assert made.systemd.kept == []


#: Blocks the thread that comes by the point while the file is there, which it takes away.
_WEDGE = """
import os, sys, time
def hear(event, arguments):
    if event == {event!r} and arguments[0] == {point!r} and os.path.exists({file!r}):
        os.unlink({file!r})
        time.sleep(3600)
sys.addaudithook(hear)
"""


def test_the_watchdog_ends_a_gate_that_is_wedged(folder: Path, tally: Tally) -> None:
    """Though all else lives: the loop that answers feeds it, and no other. The next one serves who waited."""
    order = folder / "wedge"
    (folder / "site").mkdir()
    wedge = _WEDGE.format(event=EVENT, point=str(Point.GATE_TAKEN), file=str(order))
    (folder / "site/sitecustomize.py").write_text(wedge)
    python = Python()
    path = f"{folder / 'site'}:{python.environment['PYTHONPATH']}"
    python = Python(python.words, {**python.environment, "PYTHONPATH": path})
    with stage(folder, tally, watchdog=4.0, python=python) as made, readers(made, 1) as [reader]:
        systemd = made.systemd
        assert systemd
        assert wait_until(lambda: len(systemd.signs) >= 2)
        assert systemd.missed == 0
        order.touch()
        made.ask(reader, _PIECES[:1])
        assert wait_until(lambda: not order.exists())
        assert made.waiting() == 0  # the daemon answers, its gate does not
        assert wait_until(lambda: systemd.missed == 1)
        assert wait_until(lambda: not made.daemon.is_running)
        assert made.daemon.status == -signal.SIGABRT
        assert re.search(r"Aborted(?s:.*)gate\.py.* in _take_events", made.daemon.log_text())
        made.relay.hurry(None)
        made.start()
        assert made.denied() == []
        assert wait_until(lambda: bool(systemd.signs))


def test_a_daemon_without_a_gate_feeds_the_watchdog_too(folder: Path) -> None:
    with Systemd(folder, watchdog=1.5) as systemd:
        settings: Settings = {"mount": {"backend": "complete"}}
        with Daemon(folder / "daemon", settings, service=systemd):
            assert wait_until(lambda: len(systemd.signs) >= 3)
        assert systemd.missed == 0
        assert systemd.is_stopping
