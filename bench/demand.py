"""How long does a read wait for a missing 128 KiB while prefetch fills the line?

    make bench        (or: python -m bench.demand [--rounds N] [--small] [--rate MIB_A_SECOND] [--round-trip MILLISECONDS])

A model of 8 files on docker-registry, behind the lab's relay (tests/lab/relay.py): 20 ms there and back, and one line of 50 MiB/s that
all connections share, which is a tenth of what the relay can move. `modelvold mount`, and prefetch takes the whole line, from the first
file on; then one reader reads 128 KiB at random places of the later files, one after the other, each in a segment of its own of which
nothing is here, with pauses in which prefetch has the line again. A place is never so near its segment's end that the kernel's
read-ahead would wait for the next one too. A connection has the least window with which it fills the line alone; with the relay's own
of 32 MiB, prefetches that hold still would go on to fill the line, and the relay's memory, for many seconds.

- modelvold: as it is.
- no yielding: the same daemon, where a demand has the next connection, but prefetch does not hold still for it.
- in turn: the same daemon without pre-emption: first come, first served. What is demanded is in prefetch's order already, and
  waits there for its turn, which is the longer the more is before it: a line's worth of whatever is asked for first.
- alone: one segment, on one connection that is open already, while nothing else runs. The goal is that and 20 ms.

The last two daemons are made by a `sitecustomize` that patches ours. In turn there are few reads a round, since each waits for long.
p99 is that of all rounds' reads together. *line used* is what arrived in the store meanwhile, as a share of the line's rate.
"""

from __future__ import annotations

import argparse
import http.client
import math
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvold.store.segment import file_name

from bench import peers, pictures, report
from bench.measure import bytes_in, timed, turns
from bench.readers import Piece, Readers
from bench.report import OURS, Figures, Goal
from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Python
from tests.lab.mounts import unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.lab.relay import Relay

MIB = 1 << 20
NO_YIELDING, IN_TURN, ALONE, GOAL = "no yielding", "in turn", "alone", "alone + 20 ms"
READ, P99 = "a read of 128 KiB, s", "99 of 100 reads at most, s"
_REPOSITORY = "bench/demand"
_READ = 128 << 10
_READ_AHEAD = 512 << 10
_GRACE = 0.02
_PAUSE = (0.1, 0.4)
#: The cut of a file of 64 MiB or more (layer/cut.py): its header's segment, then equal ones.
_HEADER, _SEGMENT = 2 * MIB, 16 * MIB

#: Seconds for which the relay may be behind.
_SLACK = 0.002

#: An error in a sitecustomize is no error to Python: one that has come to its end says so.
_DONE = "\nis_done = True\n"
_HOLDS_NOT = """
from modelvold.fetch import traffic
assert traffic.holds
traffic.holds = lambda *arguments, **named: False
"""
#: A demand is one more wish at the end of prefetch's order; of a content that is in it already, nothing.
_WAITS_ITS_TURN = """
from modelvold.fetch.plan import Plan
from modelvold.fetch.stretch import Stretch

def demand(self, key):
    if not self._ahead.is_wanted(key[0]):
        self._ahead.want([Stretch(key[0], key[1], key[1] + 1)])

Plan.demand = demand
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """`segments` of 16 MiB a file, beside its header's; `rate` in bytes a second."""

    files: int
    segments: int
    reads: int
    rate: float

    @property
    def file(self) -> int:
        """Bytes of a file."""
        return _HEADER + self.segments * _SEGMENT

    @property
    def patience(self) -> float:
        """Seconds for which reads are begun: as long as there is something to prefetch."""
        return 0.8 * self.files * self.file / self.rate


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--rate", type=float, default=50, help="of the line, in MiB a second")
    parser.add_argument("--round-trip", type=float, default=20, help="in milliseconds")
    chosen = parser.parse_args()
    if chosen.small:
        chosen.rate *= 4  # enough segments for all connections and some to be demanded, in few seconds
    rate, round_trip = chosen.rate * MIB, chosen.round_trip / 1000
    scale = Scale(4, 12, 2, rate) if chosen.small else Scale(8, 19, 40, rate)
    window = int(rate * (round_trip / 2 + _SLACK))
    folder = lazy_folder()
    figures = Figures()
    try:
        with Registry(folder / "registry") as registry, Relay(registry.port, round_trip, rate, window) as line:
            files = {f"model-{n}.safetensors": Generated(scale.file, n) for n in range(scale.files)}
            model = registry.push.model(files, _REPOSITORY)
            pythons = {
                OURS: Python(),
                NO_YIELDING: _patched(folder / "no-yielding", _HOLDS_NOT),
                IN_TURN: _patched(folder / "in-turn", _HOLDS_NOT + _WAITS_ITS_TURN),
            }
            for who in turns([*pythons, ALONE], chosen.rounds):
                if who == ALONE:
                    figures.add(READ, GOAL, _fetch_alone(line, model) + _GRACE)
                else:
                    _read_while_prefetching(folder / "turn", line, model, pythons[who], scale, (figures, who))
        print(report.machine(folder, peers.versions("docker-registry")))
        far = f"{chosen.round_trip:g} ms and {chosen.rate:g} MiB/s"
        print(f"{scale.files} × {scale.file // MIB} MiB behind a relay of {far}; {chosen.rounds} rounds")
        _tell(figures, chosen)
    finally:
        shutil.rmtree(folder)


def _patched(folder: Path, patch: str) -> Python:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(patch + _DONE)
    usual = Python()
    environment = {**usual.environment, "PYTHONPATH": f"{folder}:{usual.environment['PYTHONPATH']}"}
    looks = [*usual.words, "-c", "import sitecustomize; assert sitecustomize.is_done"]
    subprocess.run(looks, env={**os.environ, **environment}, check=True)
    return Python(environment=environment)


def _fetch_alone(line: Relay, model: Pushed) -> float:
    """Seconds from the request for a segment to its last byte."""
    digest = next(iter(model.layers.values()))
    connection = http.client.HTTPConnection(line.host, timeout=60)
    buffer = memoryview(bytearray(MIB))

    def ask(first: int, length: int) -> None:
        wanted = {"Range": f"bytes={first}-{first + length - 1}"}
        connection.request("GET", f"/v2/{_REPOSITORY}/blobs/{digest}", headers=wanted)
        answer = connection.getresponse()
        assert answer.status == 206
        got = 0
        while count := answer.readinto(buffer):
            got += count
        assert got == length

    try:
        ask(0, 512)
        return timed(lambda: ask(_HEADER, _SEGMENT))
    finally:
        connection.close()


def _read_while_prefetching(
    at: Path, line: Relay, model: Pushed, python: Python, scale: Scale, into: tuple[Figures, str]
) -> None:
    here = at / "here"
    here.mkdir(parents=True)
    os.sync()
    figures, who = into
    try:
        with Daemon(at / "daemon", {"log": {"level": "info"}}, python=python) as daemon, Readers(1) as readers:
            ran = daemon.cli("mount", f"{line.host}/{_REPOSITORY}:v1", here)
            assert ran.returncode == 0, f"modelvold mount: {ran.stderr}\n{daemon.log_text()[-3000:]}"
            store = daemon.root / "content"
            assert wait_until(lambda: bytes_in(store) > scale.rate / 2), "prefetch does not begin"
            began, before = time.monotonic(), bytes_in(store)
            for took in _reads(readers, here, model, scale, store):
                figures.add(READ, who, took)
            came, seconds = bytes_in(store) - before, time.monotonic() - began
            figures.add("line used", who, came / seconds / scale.rate)
    finally:
        unmount_below(at)
        shutil.rmtree(at)


def _reads(readers: Readers, here: Path, model: Pushed, scale: Scale, store: Path) -> Iterator[float]:
    """The seconds of each, one after another, while there is something to prefetch."""
    order, end = random.Random(1), time.monotonic() + scale.patience
    names = list(model.layers)[scale.files // 3 :]
    places = [(name, number) for name in names for number in range(1, scale.segments + 1)]
    order.shuffle(places)
    done = 0
    for name, number in places:
        if done == scale.reads:
            return
        time.sleep(order.uniform(*_PAUSE))
        if time.monotonic() > end:
            return
        segment = next(store.rglob(f"{model.layers[name].removeprefix('sha256:')}.raw")) / file_name(number)
        if not segment.stat().st_size:
            place = _HEADER + (number - 1) * _SEGMENT + order.randrange(0, _SEGMENT - _READ - _READ_AHEAD, 4096)
            yield readers.time(Piece(str(here / name), place, _READ))
            done += 1


def _tell(figures: Figures, chosen: argparse.Namespace) -> None:
    reads = figures.rows[READ]
    for who, took in list(reads.items()):
        figures.add(P99, who, figures.median(READ, GOAL) or 0 if who == GOAL else _percentile(took, 99))
        if who != GOAL:
            figures.add("reads", who, len(took))
    bounds = [Goal(row, 1.0, (GOAL,)) for row in (READ, P99)]
    report.show("demand", chosen, figures, [*bounds, *(Goal(row, 0.2, (IN_TURN,)) for row in (READ, P99))])
    title = "A read of 128 KiB that is missing, while prefetch fills the line"
    samples = {who: took for who, took in reads.items() if who != GOAL}
    pictures.distributions("demand", chosen, title, "seconds", samples, figures.median(READ, GOAL) or 0)


def _percentile(values: Sequence[float], percent: int) -> float:
    """The least of the values that so many of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


if __name__ == "__main__":
    main()
