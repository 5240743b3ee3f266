"""How long until a model of 1, 10, 100, 700 GB is mounted, when its descriptors are all that is asked for?

    make bench        (or: python -m bench.mount_time [--rounds N] [--gigabytes N …])

Models of raw ModelPack layers, shards of 4.7 GB (10^9 bytes, as the sizes are) and small files beside them, on a registry of ours on
loopback that has their manifests alone: it would answer 404 for a blob, and nobody asks. A daemon with the backend `lazy`, prefetch
off, a store of its own each round, on an ext4 made for the run (on a loop device, with a journal): one without a journal, as under our
other benches, looks at every inode that was deleted in the last five minutes before it makes a new one, and each round would pay for
the one before.

Measured, medians: the daemon's `Mount`, from a client that is connected already, so without the start of the program `modelvold
mount`; what comes after it (`Unmount`; the daemon's start with the model mounted, beside its start with nothing; `Remove`); and the
parts of the mount. Those are told by the daemon's own points (`modelvold.points`), heard in the very runs that are measured: what
hearing costs, a tenth of a microsecond for each file, is in the figures.

    manifest   until the first folder is made: resolving, reading, cutting
    files      a file for each segment, and its folders synced
    catalog    their rows and the volume's, each transaction synced
    image      segments in memory, the tree, the image written and synced
    mount      watched, mount(2) with a device for each segment
    answer     what was mounted is remembered, shown at the folder, reported
"""

from __future__ import annotations

import argparse
import hashlib
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from modelvold.points import EVENT, Point
from modelvold.rpc.control import ControlClient

from bench.report import Figures, Goal, machine
from tests.fakes.registry import FakeRegistry
from tests.lab import documents
from tests.lab.daemon import Daemon, Python
from tests.lab.needs import lazy_folder

GB = 10**9
_SHARD = 4_700_000_000
_SIZES = (1, 10, 100, 700)
_GOAL = 0.5  # seconds, for the largest
_DISK = 4 << 30  # bytes, sparse; 262,144 inodes
_SMALL_FILES = {"config.json": 700, "generation_config.json": 200, "tokenizer.json": 9_000_000, "README.md": 5000}
_PARTS = ("manifest", "files", "catalog", "image", "mount", "answer")
_MADE_FIRST = "a folder of the first content"  # heard beside the points
#: What is done after each of these, until the next.
_BEGINS = {
    _MADE_FIRST: "files",
    Point.STORE_FILES_MADE: "catalog",
    Point.STORE_CONTENT_ADDED: "image",
    Point.VOLUME_IMAGE_WRITTEN: "catalog",
    Point.VOLUME_ADDED: "mount",
    Point.MOUNT_MOUNTED: "answer",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=int, nargs="+", default=_SIZES)
    chosen = parser.parse_args()
    folder = lazy_folder()
    figures = Figures()
    try:
        print(machine(folder))
        print(f"raw layers of {_SHARD / GB:g} GB; prefetch off; backend lazy; seconds, medians of {chosen.rounds}")
        with FakeRegistry() as registry, _disk(folder) as disk:
            for number in range(chosen.rounds):
                for size in chosen.gigabytes:
                    _round(registry, size, disk / f"{size}-{number}", figures)
    finally:
        shutil.rmtree(folder)
    columns = [_column(size) for size in chosen.gigabytes]
    _print(figures, columns)
    print(Goal("mount", _GOAL, ours=columns[-1]).judge(figures))


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    image, at = folder / "disk.img", folder / "disk"
    with image.open("xb") as file:
        file.truncate(_DISK)
    at.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def _round(registry: FakeRegistry, size: int, folder: Path, figures: Figures) -> None:
    column = _column(size)
    reference = _put(registry, size)
    heard = folder / "points"
    here = folder / "here"
    here.mkdir(parents=True)
    python = Python((sys.executable, "-m", "bench.mount_time", "--hear", str(heard)), _environment())
    daemon = Daemon(folder, {"fetch": {"prefetch": False}, "log": {"level": "info"}}, python=python)
    try:
        empty_start = _timed(daemon.start)
        client = ControlClient(daemon.socket)
        client.report()
        began, used = time.monotonic(), _cpu(daemon)
        (_volume,) = client.mount(reference, here)
        ended, used = time.monotonic(), _cpu(daemon) - used
        assert "backend=lazy" in daemon.log_text(), "this machine does not mount lazily"
        figures.add("layers", column, len(list(_layers(size))))
        figures.add("segments", column, len(list((daemon.root / "content").glob("*/sha256/*/*/*"))))
        figures.add("mount", column, ended - began)
        figures.add("  a core for", column, used)
        for part, seconds in _parts(heard, began, ended).items():
            figures.add(f"  {part}", column, seconds)
        daemon.stop()
        figures.add("start, it mounted", column, _timed(daemon.start))
        figures.add("start, nothing there", column, empty_start)
        client = ControlClient(daemon.socket)
        client.report()
        assert (here / "config.json").stat().st_size == _SMALL_FILES["config.json"]
        figures.add("umount", column, _timed(lambda: client.unmount(here)))
        figures.add("rm", column, _timed(lambda: client.remove(reference)))
        assert not registry.bytes_sent(), "a blob was asked for"
    finally:
        daemon.close()
    shutil.rmtree(folder)


def _put(registry: FakeRegistry, size: int) -> str:
    """The reference of a model of so many GB, whose manifest the registry has from now on."""
    layers = [
        documents.model_layer(path, f"sha256:{hashlib.sha256(f'{size}/{path}'.encode()).hexdigest()}", length)
        for path, length in _layers(size)
    ]
    config = {"digest": f"sha256:{hashlib.sha256(b'config').hexdigest()}", "size": 300}
    manifest = documents.to_json(documents.model_manifest(config, layers))
    registry.put_manifest(f"bench/{size}gb", "v1", manifest)
    return f"{registry.address}/bench/{size}gb:v1"


def _layers(size: int) -> Iterator[tuple[str, int]]:
    """Paths and lengths in bytes."""
    yield from _SMALL_FILES.items()
    shards = -(-size * GB // _SHARD)
    for number in range(shards):
        yield f"model-{number + 1:05}-of-{shards:05}.safetensors", min(_SHARD, size * GB - number * _SHARD)


def _column(size: int) -> str:
    return f"{size} GB"


def _parts(heard: Path, began: float, ended: float) -> dict[str, float]:
    """Seconds of each part, all told; each name that was heard ends one and begins another."""
    took = dict.fromkeys(_PARTS, 0.0)
    part, since = "manifest", began
    for line in heard.read_text().splitlines():
        when, _, name = line.partition(" ")
        if began <= float(when) <= ended and name in _BEGINS:
            took[part] += float(when) - since
            part, since = _BEGINS[name], float(when)
    took[part] += ended - since
    return took


def _cpu(daemon: Daemon) -> float:
    """Seconds of a core that the daemon has had, and the kernel for it."""
    times = psutil.Process(daemon.pid).cpu_times()
    return float(times.user + times.system)


def _timed(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _print(figures: Figures, columns: Sequence[str]) -> None:
    print(" " * 22 + "".join(f"{column:>10}" for column in columns))
    for row in figures.rows:
        form = ".0f" if row in {"layers", "segments"} else ".3f"
        print(f"{row:22}" + "".join(f"{figures.median(row, column):10{form}}" for column in columns))


# -- in the daemon under test


def _environment() -> dict[str, str]:
    environment = dict(Python().environment)
    root = Path(__file__).resolve().parents[1]
    environment["PYTHONPATH"] = f"{root}:{environment['PYTHONPATH']}"
    return environment


def _hear(path: Path) -> None:
    """From now on each point that this process comes by is a line of the file: monotonic seconds, name."""
    file = path.open("a", buffering=1)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == EVENT:
            file.write(f"{time.monotonic()} {arguments[0]}\n")
        elif event == "os.mkdir" and "/sha256/" in str(arguments[0]):
            file.write(f"{time.monotonic()} {_MADE_FIRST}\n")

    sys.addaudithook(hear)


def _run_daemon(words: Sequence[str]) -> None:
    """`--hear FILE -m modelvold serve …`"""
    _hear(Path(words[1]))
    sys.argv = list(words[3:])
    runpy.run_module("modelvold", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hear"]:
        _run_daemon(sys.argv[1:])
    else:
        main()
