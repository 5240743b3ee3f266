"""Does lazy loading lose to plain downloading, when all of a model is read at once, as engines do?

    make bench        (or: python -m bench.lazy [--rounds N] [--small] [--without-soci])

The same 2 GiB as 8 files and as one, on docker-registry, loopback; read by one process or by eight at once (each its own file, or its own
eighth of the one file), with `read` or mapped. From the call until the last byte has been read:

- modelvold: `modelvold mount`, and when it returns the readers begin.
- pull: `modelvold pull` of it, which returns when all is verified and on disk; nothing is read. The goal is told by this.
- pull + read: after that pull, `modelvold mount` and the same readers.
- SOCI: `soci image rpull`, the mount of its snapshot, the same readers. It is an old release (the version is printed), prefetches
  nothing for the first 30 s, verifies spans and syncs nothing; its layers are gzip, from a registry with TLS (tests/lab/soci.py).

stargz-snapshotter is not here: Debian's package of it has `ctr-remote` and no daemon.

Every turn has a fresh store and fresh daemons, and the registry's files in the page cache. A few pieces of what was read are compared
with what was pushed, after the clock. The picture is of one reader of 8 files with `read`, of the median round.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from bench import peers, pictures, report
from bench.measure import turns, warm
from bench.readers import Readers, Swept, pieces_of, shares
from bench.report import OURS, Figures, Goal
from tests.lab import debian, soci
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.mounts import unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry
from tests.lab.soci import Image, Soci, SociRegistry

MIB = 1 << 20
PULL, PULL_AND_READ, SOCI = "pull", "pull + read", "SOCI"
_READERS = (1, 8)
_CHECKED = 64 << 10

Files = Mapping[str, Generated]
#: Bytes read over the seconds since the call.
Curve = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Case:
    what: str
    files: Files
    readers: int
    is_mapped: bool

    @property
    def row(self) -> str:
        readers = "1 reader" if self.readers == 1 else f"{self.readers} readers"
        return f"{self.what}, {readers}, {'mapped' if self.is_mapped else 'read'}, s"


@dataclass(frozen=True, slots=True)
class Bench:
    """`curves`: who → (seconds in all, curve) of each turn of the case that is drawn."""

    folder: Path
    figures: Figures
    curves: dict[str, list[tuple[float, Curve]]]

    def took(self, case: Case, who: str, began: float, swept: Swept) -> None:
        seconds = swept.ended - began
        self.figures.add(case.row, who, seconds)
        if case.readers == 1 and not case.is_mapped and len(case.files) > 1:
            self.curves.setdefault(who, []).append((seconds, list(_curve(began, swept))))

    @contextmanager
    def turn(self, blobs: Sequence[Path]) -> Iterator[Path]:
        """A fresh folder; what is served is in the page cache, and nothing is left to be written."""
        at = self.folder / "turn"
        at.mkdir()
        warm(blobs)
        os.sync()
        try:
            yield at
        finally:
            unmount_below(at)
            shutil.rmtree(at)


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--without-soci", action="store_true", help="it takes most of the time")
    chosen = parser.parse_args()
    total = 16 * MIB if chosen.small else 2048 * MIB
    ways = [(1, False), (8, True)] if chosen.small else list(product(_READERS, (False, True)))
    models: dict[str, Files] = {
        f"8 × {total // 8 // MIB} MiB": {f"model-{n}.safetensors": Generated(total // 8, n) for n in range(8)},
        f"1 × {total // MIB} MiB": {"model.safetensors": Generated(total, 8)},
    }
    if chosen.small:
        models.popitem()
    why_not = "not wanted" if chosen.without_soci else soci.missing()
    folder = lazy_folder()
    bench = Bench(folder, Figures(), {})
    try:
        with Registry(folder / "registry") as registry, SociRegistry(folder / "soci-registry") as secure:
            for number, (what, files) in enumerate(models.items()):
                cases = [Case(what, files, readers, is_mapped) for readers, is_mapped in ways]
                reference = registry.push.model(files, f"bench/lazy-{number}").reference
                image = None if why_not else secure.push_image(f"bench/lazy-{number}", files, folder / "index")
                _compete(bench, cases, reference, registry, image, secure, chosen)
        print(report.machine(folder, peers.versions("docker-registry", "containerd", soci.PACKAGE)))
        print(f"from the call until all is read, loopback; medians of {chosen.rounds}")
        if why_not:
            print(f"{SOCI} was not run: {why_not}")
        rows = list(bench.figures.rows)
        report.show("lazy", chosen, bench.figures, [Goal(row, 1.1, (PULL,)) for row in rows])
        _draw(bench, chosen)
    finally:
        shutil.rmtree(folder)


def _compete(
    bench: Bench,
    cases: Sequence[Case],
    reference: str,
    registry: Registry,
    image: Image | None,
    secure: SociRegistry,
    chosen: argparse.Namespace,
) -> None:
    blobs, secure_blobs = _blobs(registry), _blobs(secure)
    sides: list[Callable[[], None]] = []
    for case in cases:
        sides.append(partial(_lazily, bench, case, reference, blobs))
        sides.append(partial(_eagerly, bench, case, reference, blobs))
        if image:
            sides.append(partial(_by_soci, bench, case, image, secure, secure_blobs))
    for side in turns(sides, chosen.rounds):
        side()


def _lazily(bench: Bench, case: Case, reference: str, blobs: Sequence[Path]) -> None:
    with bench.turn(blobs) as at, _daemon(at) as daemon, Readers(case.readers) as readers:
        began = time.monotonic()
        swept = _mount_and_sweep(daemon, case, reference, at / "here", readers)
        bench.took(case, OURS, began, swept)
        _check(case, at / "here")


def _eagerly(bench: Bench, case: Case, reference: str, blobs: Sequence[Path]) -> None:
    with bench.turn(blobs) as at, _daemon(at) as daemon, Readers(case.readers) as readers:
        began = time.monotonic()
        _verb(daemon, "pull", reference)
        bench.figures.add(case.row, PULL, time.monotonic() - began)
        swept = _mount_and_sweep(daemon, case, reference, at / "here", readers)
        bench.took(case, PULL_AND_READ, began, swept)
        _check(case, at / "here")


def _by_soci(bench: Bench, case: Case, image: Image, secure: SociRegistry, blobs: Sequence[Path]) -> None:
    with bench.turn(blobs) as at, Soci(at / "soci", secure) as running, Readers(case.readers) as readers:
        began = time.monotonic()
        here = running.show(image, at / "soci/here")
        bench.took(case, SOCI, began, _sweep(case, here, readers))
        _check(case, here)


def _daemon(at: Path) -> Daemon:
    return Daemon(at / "daemon", {"log": {"level": "info"}})


def _mount_and_sweep(daemon: Daemon, case: Case, reference: str, here: Path, readers: Readers) -> Swept:
    here.mkdir()
    _verb(daemon, "mount", reference, here)
    return _sweep(case, here, readers)


def _verb(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words)
    assert ran.returncode == 0, f"modelvold {words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"


def _sweep(case: Case, here: Path, readers: Readers) -> Swept:
    pieces = pieces_of([here / name for name in case.files])
    swept = readers.sweep(shares(pieces, case.readers), is_mapped=case.is_mapped)
    assert swept.bytes == sum(content.size for content in case.files.values())
    return swept


def _check(case: Case, here: Path) -> None:
    """A piece of each file is what was pushed."""
    for name, content in case.files.items():
        at = random.randrange(max(1, content.size - _CHECKED))
        with (here / name).open("rb") as file:
            file.seek(at)
            assert file.read(_CHECKED) == content.at(at, _CHECKED), f"{name} is not what was pushed, at {at}"


def _blobs(registry: Registry) -> list[Path]:
    return list((registry.folder / "storage/docker/registry/v2/blobs").rglob("data"))


def _curve(began: float, swept: Swept) -> Iterator[tuple[float, float]]:
    yield 0.0, 0.0
    yield swept.began - began, 0.0
    read = 0
    for at, size in swept.progress:
        read += size
        yield at - began, read / MIB


def _draw(bench: Bench, chosen: argparse.Namespace) -> None:
    names = {OURS: "lazy", PULL_AND_READ: "pull, then read", SOCI: f"SOCI {debian.edition(soci.PACKAGE)}"}
    median = {who: sorted(turns)[len(turns) // 2][1] for who, turns in bench.curves.items()}
    curves = {names[who]: median[who] for who in names if who in median}
    pictures.lines("lazy", chosen, "One reader of 8 files, from the call", ("seconds", "MiB read"), curves)


if __name__ == "__main__":
    main()
