"""How fast are present bytes read through FUSE, beside the backend `lazy`, the store's file system, and a peer's FUSE?

    make bench        (or: python -m bench.fuse [--rounds N] [--small] [--without-soci])

The same 4 files of 256 MiB, all of them there, shown by

- modelvold: the backend `fuse`, mounted before it was complete, since a complete volume leaves FUSE for who comes then.
- lazy: the backend `lazy`, complete.
- plain: files on the file system that holds the stores.
- SOCI: soci-snapshotter, once all has been read through it (its version is printed; tests/lab/soci.py says how it is run).

Read from the first byte to the last by one process, or by four at once (each its own file), with `read` or mapped; and 4 KiB at a time at
random places of mappings. Each

- cold: the page cache was emptied (/proc/sys/vm/drop_caches; in a dry run these files alone were taken out of it), so the disk is read.
- from the store's pages: what shows the files has none of their pages, what it shows them from is in the page cache.
- warm: all has just been read.

*CPU* is the serving process's user and system time for each GB of the sequential reads that were not warm; *memory* the most that was
resident of it (the heap of a Go program, and a Python's). All take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil

from bench import peers, report
from bench.measure import cpu_seconds, drop, peak_memory, turns, warm
from bench.readers import Piece, Readers, pieces_of, shares
from bench.report import OURS, Figures, Goal
from tests.lab import soci
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry
from tests.lab.soci import Soci, SociRegistry

MIB, GB = 1 << 20, 10**9
LAZY, PLAIN, SOCI = "lazy", "plain", "SOCI"
COLD, STORE, WARM = "cold", "from the store's pages", "warm"
_PAGE = 4096
_RANDOM_READS = 20_000
_DROP = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Side:
    """`shown` are the files; `store` holds what they are made of; `pid` serves them, 0 for nobody. `below` are mounts that `shown` is an
    overlay of, which have the pages."""

    who: str
    shown: Path
    store: Path
    pid: int = 0
    below: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        return sorted(path for path in self.shown.iterdir() if path.is_file())


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--without-soci", action="store_true")
    chosen = parser.parse_args()
    size = 4 * MIB if chosen.small else 256 * MIB
    files = {f"model-{n}.safetensors": Generated(size, n) for n in range(4)}
    why_not = "not wanted" if chosen.without_soci else soci.missing()
    folder = lazy_folder()
    figures = Figures()
    try:
        with ExitStack() as life:
            readers = life.enter_context(Readers(len(files)))
            sides = list(_sides(folder, files, life, with_soci=not why_not))
            for side in turns(sides, chosen.rounds):
                _measure(side, readers, figures, chosen)
            for side in sides:
                if side.pid:
                    figures.add("memory, MiB", side.who, peak_memory(side.pid) / MIB)
        print(report.machine(folder, peers.versions("docker-registry", soci.PACKAGE)))
        print(f"4 × {size // MIB} MiB, all there; medians of {chosen.rounds}")
        if why_not:
            print(f"{SOCI} was not run: {why_not}")
        goals = [Goal(f"{COLD}, read, 1 reader, GB/s", least=1.5), Goal(f"{STORE}, read, 1 reader, GB/s", least=1.5)]
        goals += [Goal(row, peers=(PLAIN,), least=0.95) for row in figures.rows if row.startswith(WARM)]
        report.show("fuse", chosen, figures, goals)
    finally:
        shutil.rmtree(folder)


def _sides(folder: Path, files: dict[str, Generated], life: ExitStack, *, with_soci: bool) -> Iterator[Side]:
    registry = life.enter_context(Registry(folder / "registry"))
    reference = registry.push.model(files, "bench/fuse").reference
    for who, backend in ((OURS, "fuse"), (LAZY, "lazy")):
        settings = {"log": {"level": "info"}, "fetch": {"prefetch": False}, "mount": {"backend": backend}}
        here = folder / f"{backend}-here"
        here.mkdir()
        life.callback(unmount_below, here)
        daemon = life.enter_context(Daemon(folder / backend, settings))
        for words in (("mount", reference, here), ("pull", reference)):
            ran = daemon.cli(*words)
            assert ran.returncode == 0, f"modelvold {words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"
        yield Side(who, here, daemon.root, _serving(daemon.run) if backend == "fuse" else daemon.pid)
    plain = folder / "plain"
    plain.mkdir()
    for name, content in files.items():
        with (plain / name).open("wb", buffering=0) as file:
            for block in content.blocks():
                file.write(block)
    yield Side(PLAIN, plain, plain)
    if with_soci:
        secure = life.enter_context(SociRegistry(folder / "soci-registry"))
        image = secure.push_image("bench/fuse", files, folder / "index")
        running = life.enter_context(Soci(folder / "soci", secure))
        here = running.show(image, folder / "soci/here")
        warm([here / name for name in files])
        below = tuple(Path(mount.point) for mount in mounted(soci.HOME) if mount.type.startswith("fuse"))
        yield Side(SOCI, here, soci.HOME, running.pid, below)


def _serving(run: Path) -> int:
    """The process that serves FUSE for the daemon with this run folder."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "fuse" in words and str(run) in words:
            return int(process.pid)
    raise AssertionError("no process serves FUSE")


def _measure(side: Side, readers: Readers, figures: Figures, chosen: argparse.Namespace) -> None:
    whole = pieces_of(side.paths)
    used, read = 0.0, 0
    for state, (count, is_mapped) in product((COLD, STORE, WARM), ((1, False), (1, True), (4, False))):
        if state == STORE and side.who == PLAIN:
            continue
        _prepare(side, state, readers, whole, is_small=chosen.small)
        before = cpu_seconds(side.pid) if side.pid else 0.0
        swept = readers.sweep(shares(whole, count), is_mapped=is_mapped)
        if state != WARM and side.pid:
            used += cpu_seconds(side.pid) - before
            read += swept.bytes
        what = f"{'mapped' if is_mapped else 'read'}, {count} reader{'s' if count > 1 else ''}"
        figures.add(f"{state}, {what}, GB/s", side.who, swept.bytes / (swept.ended - swept.began) / GB)
    for state in (COLD, STORE, WARM):
        if state == STORE and side.who == PLAIN:
            continue
        _prepare(side, state, readers, whole, is_small=chosen.small)
        pieces = _scattered(whole, 200 if chosen.small or state == COLD else _RANDOM_READS)
        swept = readers.sweep([pieces], is_mapped=True)
        speed = len(pieces) / (swept.ended - swept.began) / 1000
        figures.add(f"{state}, 4 KiB mapped at random, thousands a second", side.who, speed)
    if read:
        figures.add("CPU of who serves, s/GB", side.who, used / read * GB)


def _prepare(side: Side, state: str, readers: Readers, whole: list[Piece], *, is_small: bool) -> None:
    folders: dict[str, Callable[[], object]] = {
        COLD: lambda: _cool(side, is_small=is_small),
        STORE: lambda: _drop_shown(side),
        WARM: lambda: readers.sweep([whole], is_mapped=False),
    }
    folders[state]()


def _drop_shown(side: Side) -> None:
    """What it is shown from stays, or comes."""
    warm(
        path for path in side.store.rglob("*") if path.is_file() and not path.is_relative_to(side.store / "snapshotter")
    )
    for folder in (side.shown, *side.below):
        drop(folder)


def _cool(side: Side, *, is_small: bool) -> None:
    os.sync()
    try:
        if not is_small:
            _DROP.write_text("3")
            return
    except OSError:
        pass
    drop(side.shown)
    drop(side.store)


def _scattered(whole: list[Piece], count: int) -> list[Piece]:
    """Pages of these files, each read once."""
    pages = [(piece.path, at) for piece in whole for at in range(0, piece.length, _PAGE)]
    return [Piece(path, at, _PAGE) for path, at in random.Random(7).sample(pages, count)]


if __name__ == "__main__":
    main()
