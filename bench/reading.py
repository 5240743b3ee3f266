"""How fast is a complete model read, beside the same files on the store's file system, and what does the daemon do meanwhile?

    make bench        (or: python -m bench.reading [--rounds N] [--small])

8 files of 256 MiB, pulled and mounted with the backend `lazy`; beside them plain copies on the file system that holds the store. Read
by one process, or by eight at once (each its own file), with `read` or mapped:

- warm: all has just been read, and is read four times more.
- cold: the page cache was emptied (/proc/sys/vm/drop_caches; where that is not allowed, and in a dry run, these files alone were taken
  out of it by posix_fadvise).

All of it three times: while the daemon runs, after it was stopped (SIGTERM), and after it was killed (SIGKILL) once started again; the
mount is the same throughout. The two sides take turns, and who begins changes. *daemon's CPU* is its user and system time, in ticks of
10 ms, while everything was read with it running; beside it what it used in as long a time with nothing read; *for it* is the
difference.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench import peers, report
from bench.measure import cpu_seconds, drop
from bench.readers import Readers, pieces_of, shares
from bench.report import OURS, Figures, Goal
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.mounts import unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry

MIB, GB = 1 << 20, 10**9
PLAIN, IDLE = "plain file", "idle"
CPU = "daemon's CPU, s"
MORE = "daemon's CPU for it, s"
_READERS = (1, 8)
_PASSES = 4
_DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Case:
    is_warm: bool
    is_mapped: bool
    readers: int

    @property
    def name(self) -> str:
        readers = "1 reader" if self.readers == 1 else f"{self.readers} readers"
        return f"{'warm' if self.is_warm else 'cold'}, {'mapped' if self.is_mapped else 'read'}, {readers}, GB/s"


@dataclass(frozen=True, slots=True)
class Tools:
    """`cool` takes what these folders hold out of the page cache."""

    readers: Readers
    cool: Callable[[Sequence[Path]], None]


def main() -> None:
    chosen = report.arguments(__doc__).parse_args()
    size = 2 * MIB if chosen.small else 256 * MIB
    files = {f"model-{n}.safetensors": Generated(size, n) for n in range(8)}
    cases = [
        Case(is_warm, is_mapped, readers)
        for is_warm, is_mapped, readers in product((True, False), (False, True), _READERS)
    ]
    cool = _drop_all if chosen.small else _empty_cache
    folder = lazy_folder()
    figures = Figures()
    try:
        _write(folder / "plain", files)
        with Registry(folder / "registry") as registry, Readers(max(_READERS)) as readers:
            reference = registry.push.model(files, "bench/reading").reference
            for number in range(chosen.rounds):
                _measure(folder, reference, cases, Tools(readers, cool), figures, number)
        print(report.machine(folder, peers.versions("docker-registry")))
        print(f"8 × {size // MIB} MiB, complete; medians of {chosen.rounds}")
        speeds = [row for row in figures.rows if row.endswith("GB/s")]
        goals = [Goal(row, peers=(PLAIN,), least=0.95) for row in speeds if "warm" in row]
        report.show("reading", chosen, figures, [*goals, Goal(MORE, 0.0)])
    finally:
        shutil.rmtree(folder)


def _write(folder: Path, files: Mapping[str, Generated]) -> None:
    folder.mkdir()
    for name, content in files.items():
        with (folder / name).open("wb", buffering=0) as file:
            for block in content.blocks():
                file.write(block)
            os.fsync(file.fileno())


def _measure(folder: Path, reference: str, cases: Sequence[Case], tools: Tools, figures: Figures, number: int) -> None:
    at = folder / "round"
    here = at / "here"
    here.mkdir(parents=True)
    sides = {OURS: here, PLAIN: folder / "plain"}
    if number % 2:
        sides = dict(reversed(sides.items()))
    daemon = Daemon(at / "daemon", {"log": {"level": "info"}})

    def read_all(state: str) -> None:
        for case in cases:
            for who, files in sides.items():
                figures.add(f"{state}: {case.name}", who, _speed(files, case, tools, at))

    try:
        with daemon:
            for words in (("pull", reference), ("mount", reference, here)):
                ran = daemon.cli(*words)
                assert ran.returncode == 0, f"modelvold {words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"
            used, seconds = _cpu_of(daemon, lambda: read_all("daemon runs"))
            idle, _ = _cpu_of(daemon, lambda: time.sleep(seconds))
            figures.add(CPU, OURS, used)
            figures.add(CPU, IDLE, idle)
            figures.add(MORE, OURS, max(0.0, used - idle))
            daemon.stop()
            read_all("stopped")
            daemon.start()
            daemon.kill9()
            read_all("killed")
    finally:
        unmount_below(at)
        shutil.rmtree(at)


def _cpu_of(daemon: Daemon, do: Callable[[], None]) -> tuple[float, float]:
    """The daemon's CPU seconds while `do` runs, and the seconds that takes."""
    time.sleep(1)  # what a mount or a pull leaves to be done is done
    before, began = cpu_seconds(daemon.pid), time.monotonic()
    do()
    return cpu_seconds(daemon.pid) - before, time.monotonic() - began


def _speed(folder: Path, case: Case, tools: Tools, store: Path) -> float:
    """In GB a second. `store` holds the segments that `folder` may be made of."""
    share = shares(pieces_of(sorted(folder.iterdir())), case.readers)
    if case.is_warm:
        tools.readers.sweep(share, is_mapped=case.is_mapped)
    else:
        tools.cool([folder, store])
    swept = tools.readers.sweep(share, is_mapped=case.is_mapped, passes=_PASSES if case.is_warm else 1)
    return swept.bytes / (swept.ended - swept.began) / GB


def _empty_cache(folders: Sequence[Path]) -> None:
    os.sync()
    try:
        _DROP.write_text("3")
    except OSError:
        _drop_all(folders)


def _drop_all(folders: Sequence[Path]) -> None:
    for folder in folders:
        drop(folder)


if __name__ == "__main__":
    main()
