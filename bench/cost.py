"""What does the daemon cost in memory and CPU, whatever the size of the model?

    make bench        (or: python -m bench.cost [--rounds N] [--small] [--disk BYTES_A_SECOND])

Models of 2 and 8 GiB are pulled, and one of 32 GiB is read through a mount by another process while a quota of 6 GiB keeps evicting it. A
generator in a process of its own serves the bytes as fast as they are taken (bench/generator.py); the daemon has 16 connections, and
its store lies on a slow disk: an ext4 image on a loop device, whose writes the kernel holds to 400 MB/s (blkio throttling; where
that controller is not mounted, a line says that the disk is as fast as it is).

- peak: VmHWM of the daemon, from its start to the end of the work.
- CPU: its user and system time for the work, by 10⁹ bytes of the model; beside it, measured in every round, what one thread takes
  to hash as many bytes from memory, and to receive them from the same generator and write them to the same disk.
- fetched: bytes that the generator sent, by the model's.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.generator import REPOSITORY
from bench.measure import cpu_seconds, peak_memory, turns
from bench.report import OURS, Figures, Goal
from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Settings
from tests.lab.mounts import unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.program import Program, free_port, is_listening

MIB = 1 << 20
_PIECE = 256 << 10
_BASE = "sha256 + copy"
_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
_FLATNESS = "peak, largest by smallest, ×"
#: Up to which it is called flat.
_FLAT = 1.25


@dataclass(frozen=True, slots=True)
class Model:
    """`layers` of `unit` MiB each; read through a mount under a quota of `quota` MiB, or pulled where there is none."""

    layers: int
    unit: int
    quota: int = 0

    @property
    def size(self) -> int:
        return self.layers * self.unit * MIB

    @property
    def what(self) -> str:
        return f"{self.layers} × {self.unit} MiB" + (f", quota {self.quota} MiB" if self.quota else "")


_MODELS = [Model(4, 512), Model(4, 2048), Model(16, 2048, 6144)]
_SMALL = [Model(2, 8), Model(2, 16), Model(4, 32, 72)]


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--disk", type=int, default=400_000_000, help="what the disk writes, in bytes a second")
    chosen = parser.parse_args()
    models = _SMALL if chosen.small else _MODELS
    folder = lazy_folder()
    try:
        image = 1024 if chosen.small else 16384
        with _serving(folder, models) as port, _slow_disk(folder, image * MIB, chosen.disk) as (disk, said):
            figures = _measure(chosen, models, port, disk)
        print(report.machine(folder))
        print(f"daemon with 16 connections to a generator on loopback; {said}; medians of {chosen.rounds}")
        report.show("cost", chosen, figures, _goals(figures))
    finally:
        shutil.rmtree(folder)


def _measure(chosen: argparse.Namespace, models: list[Model], port: int, disk: Path) -> Figures:
    figures = Figures()
    host = f"127.0.0.1:{port}"
    for model in turns(models, chosen.rounds):
        base = _base_of(host, models[0], disk)
        sent = _sent(host)
        cpu, peak = _work(f"{host}/{REPOSITORY}:v{models.index(model)}", model, disk)
        per = 1e9 / model.size
        figures.add(f"{model.what}: peak, MiB", OURS, peak / MIB)
        figures.add(f"{model.what}: CPU, s/GB", OURS, cpu * per)
        for what, seconds in base.items():
            figures.add(f"{model.what}: CPU, s/GB", what, seconds)
        figures.add(f"{model.what}: fetched, ×", OURS, (_sent(host) - sent) / model.size)
    peaks = [figures.rows[f"{model.what}: peak, MiB"][OURS] for model in models]
    for smallest, largest in zip(peaks[0], peaks[-1], strict=True):
        figures.add(_FLATNESS, OURS, largest / smallest)
    return figures


def _goals(figures: Figures) -> list[Goal]:
    rows = [row for row in figures.rows if row.endswith("CPU, s/GB")]
    peaks = [row for row in figures.rows if row.endswith("peak, MiB")]
    return [*(Goal(row, 300) for row in peaks), Goal(_FLATNESS, _FLAT), *(Goal(row, 1.3, (_BASE,)) for row in rows)]


def _work(reference: str, model: Model, disk: Path) -> tuple[float, int]:
    """CPU seconds and peak bytes of a daemon with a fresh store."""
    folder = disk / "daemon"
    settings: Settings = {"fetch": {"connections": 16}, "log": {"level": "info"}}
    if model.quota:
        settings["store"] = {"quota": f"{model.quota} MiB"}
    os.sync()
    with Daemon(folder, settings) as daemon:
        before = cpu_seconds(daemon.pid)
        if model.quota:
            _read_through(daemon, reference, folder / "here", model.size)
        else:
            _verb(daemon, "pull", reference)
        cost = cpu_seconds(daemon.pid) - before, peak_memory(daemon.pid)
    shutil.rmtree(folder)
    return cost


def _read_through(daemon: Daemon, reference: str, here: Path, size: int) -> None:
    here.mkdir()
    _verb(daemon, "mount", reference, here)
    paths = sorted(str(path) for path in here.iterdir())
    words = ["/bin/sh", "-c", 'cat "$@" | wc -c', "cat", *paths]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=True)
    assert int(ran.stdout) == size, ran.stderr
    _verb(daemon, "umount", here)


def _verb(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words, timeout=1800)
    assert ran.returncode == 0, f"{words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"


def _base_of(host: str, model: Model, disk: Path) -> dict[str, float]:
    """CPU seconds for 10⁹ bytes of this process, over one layer of `model`."""
    size = model.unit * MIB
    block = memoryview(Generated(min(size, 64 * MIB), 1).at(0, size))
    hashed = _cpu_of(lambda: _hash(block, size)) * 1e9 / size
    copied = _cpu_of(lambda: _receive(host, disk / "copy")) * 1e9 / size
    (disk / "copy").unlink()
    return {"sha256": hashed, "copy": copied, _BASE: hashed + copied}


def _cpu_of(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def _hash(block: memoryview, size: int) -> None:
    summed = hashlib.sha256()
    for at in range(0, size, _PIECE):
        start = at % len(block)
        summed.update(block[start : start + _PIECE])


def _receive(host: str, target: Path) -> None:
    """The first layer of the first model."""
    connection = http.client.HTTPConnection(host, timeout=60)
    buffer = memoryview(bytearray(_PIECE))
    connection.request("GET", f"/v2/{REPOSITORY}/first")
    answer = connection.getresponse()
    with target.open("wb", buffering=0) as file:
        while count := answer.readinto(buffer):
            file.write(buffer[:count])
    connection.close()


def _sent(host: str) -> int:
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/sent")
    sent = int(connection.getresponse().read())
    connection.close()
    return sent


@contextmanager
def _serving(folder: Path, models: list[Model]) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "bench.generator", str(port), *(f"{m.layers}x{m.unit}" for m in models)]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    generator = Program("generator", command, folder / "generator.log", lambda: is_listening(port), environment)
    try:
        generator.start(patience=600)
        yield port
    finally:
        generator.stop()


@contextmanager
def _slow_disk(folder: Path, size: int, rate: int) -> Iterator[tuple[Path, str]]:
    """Where a new ext4 is mounted, and a line that says how slow it is."""
    image, at = folder / "disk.img", folder / "disk"
    with image.open("xb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    device = f"{os.major(at.stat().st_dev)}:{os.minor(at.stat().st_dev)}"
    try:
        if not _THROTTLE.exists():
            yield at, "ext4 on a loop device, not slowed: no blkio controller here"
            return
        _THROTTLE.write_text(f"{device} {rate}\n")
        yield at, f"ext4 on a loop device that writes {rate / 1e6:g} MB/s"
    finally:
        if _THROTTLE.exists():
            _THROTTLE.write_text(f"{device} 0\n")
        unmount_below(folder)
        image.unlink()


if __name__ == "__main__":
    main()
