"""How long until a model in one tar layer is mounted, and what is asked of a registry 20 ms away for it?

    make bench        (or: python -m bench.tar_mount [--rounds N] [--round-trip MILLISECONDS] [--rate BYTES_A_SECOND])

Two artifacts, each with one uncompressed tar layer: 10,000 files of 1 to 8 KiB, and 100 of 16 MiB. They lie in a
docker-registry behind the lab's relay (`tests/lab/relay.py`), which delays and, unless told otherwise, limits no rate.
Measured, medians, all in one run:

- `modelvold mount` from the call to its return, with a fresh daemon and store each round and prefetch off. As the floor
  of that, the same call for a model of one raw file in the same daemon: there is no header to read.
- The same headers read one by one: a request of 512 bytes for each, on one connection. Its time is computed: what a
  request takes (the median of 50, at headers all over the layer), times the headers.
- What people do today: one GET of the whole layer into a file, then `tar -x`.

Requests and bytes are counted by the registry's own log, but for those of the computed column. A mounted layer has its
tree, not its bytes: what is served when all files have been read as well is a row of its own.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import random
import shutil
import statistics
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.lab import documents
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry
from tests.lab.relay import Relay

KIB = 1 << 10
MIB = 1 << 20
_BLOCK = 512
_SAMPLE = 50

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """A tar of files of these sizes, and where it was pushed: `digest` in the repository `name`."""

    what: str
    sizes: Sequence[int]
    name: str
    digest: str = ""
    size: int = 0

    def blocks(self) -> Iterator[bytes]:
        for number, size in enumerate(self.sizes):
            member = tarfile.TarInfo(path_of(number))
            member.size = size
            yield member.tobuf(tarfile.USTAR_FORMAT)
            yield from Generated(size, number).blocks()
            yield bytes(-size % _BLOCK)
        yield bytes(2 * _BLOCK)

    def header_offsets(self) -> Iterator[int]:
        at = 0
        for size in self.sizes:
            yield at
            at += _BLOCK + size + -size % _BLOCK
        yield at


def path_of(number: int) -> str:
    return f"part-{number // 100:03}/file-{number:05}.bin"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--round-trip", type=float, default=20, help="in milliseconds")
    arguments.add_argument("--rate", type=float, help="in bytes a second; without it the relay's own, about 500 MB/s")
    chosen = arguments.parse_args()
    sizes = random.Random(1)
    layers = (
        Layer("10,000 files of 1 to 8 KiB", [sizes.randint(KIB, 8 * KIB) for _ in range(10_000)], "bench/small"),
        Layer("100 files of 16 MiB", [16 * MIB] * 100, "bench/large"),
    )
    folder = lazy_folder()
    try:
        with (
            Registry(folder / "registry") as registry,
            Relay(registry.port, chosen.round_trip / 1000, chosen.rate) as relay,
        ):
            registry.push.model({"config.json": b"{}"}, "bench/raw", "v1")
            print(f"machine: {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}")
            rate = f", {chosen.rate / MIB:g} MiB/s" if chosen.rate else ""
            print(
                f"docker-registry behind a relay of {chosen.round_trip:g} ms round trip{rate}; one tar layer; "
                f"prefetch off; medians of {chosen.rounds}"
            )
            for layer in layers:
                _measure(registry, relay, layer, folder, chosen.rounds)
    finally:
        shutil.rmtree(folder)


def _measure(registry: Registry, relay: Relay, layer: Layer, folder: Path, rounds: int) -> None:
    pushed = _push(registry, layer)
    ours = [_mount(registry, relay, pushed, folder / f"mount-{n}") for n in range(rounds)]
    hops = [_header_by_header(relay, pushed) for _ in range(rounds)]
    peer = [_get_and_unpack(registry, relay, pushed, folder / f"peer-{n}") for n in range(rounds)]
    _print(pushed, ours, hops, peer)


def _push(registry: Registry, layer: Layer) -> Layer:
    push = registry.push
    stored = push.stored(layer.name, layer.blocks())
    described = [documents.tar_layer("weights", stored["digest"], stored["size"])]
    config = push.described(layer.name, documents.model_config(described))
    push.manifest(layer.name, "v1", documents.model_manifest(config, described))
    return replace(layer, digest=stored["digest"], size=stored["size"])


def _mount(registry: Registry, relay: Relay, layer: Layer, folder: Path) -> Figures:
    with Daemon(folder, {"fetch": {"prefetch": False}, "log": {"level": "info"}}) as daemon:
        here, raw = folder / "here", folder / "raw"
        here.mkdir()
        raw.mkdir()
        registry.forget()
        took = _timed(lambda: _verb(daemon, "mount", f"{relay.host}/{layer.name}:v1", here))
        served = registry.served()
        _read_all(here, layer)
        by_then = registry.bytes_served()
        floor = _timed(lambda: _verb(daemon, "mount", f"{relay.host}/bench/raw:v1", raw))
        _verb(daemon, "umount", here)
        _verb(daemon, "umount", raw)
    shutil.rmtree(folder)
    return {
        "time": took,
        "floor": floor,
        "requests": float(len(served)),
        "bytes": float(sum(request.bytes for request in served)),
        "bytes by then": float(by_then),
    }


def _verb(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words)
    if ran.returncode:
        raise SystemExit(f"modelvold {words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}")


def _read_all(here: Path, layer: Layer) -> None:
    """Every file is there, and is what was packed."""
    found = {str(path.relative_to(here)) for path in here.rglob("*.bin")}
    assert found == {path_of(number) for number in range(len(layer.sizes))}
    for number, size in enumerate(layer.sizes):
        assert (here / path_of(number)).read_bytes() == Generated(size, number).at(0, size)


def _header_by_header(relay: Relay, layer: Layer) -> Figures:
    offsets = list(layer.header_offsets())
    connection = http.client.HTTPConnection(relay.host, timeout=30)
    try:
        connection.connect()
        sample = random.Random(2).sample(offsets, _SAMPLE)
        took = [_timed(partial(_ask_header, connection, layer, offset)) for offset in sample]
    finally:
        connection.close()
    return {
        "time": statistics.median(took) * len(offsets),
        "requests": float(len(offsets)),
        "bytes": float(_BLOCK * len(offsets)),
    }


def _ask_header(connection: http.client.HTTPConnection, layer: Layer, at: int) -> None:
    wanted = {"Range": f"bytes={at}-{at + _BLOCK - 1}"}
    connection.request("GET", f"/v2/{layer.name}/blobs/{layer.digest}", headers=wanted)
    answer = connection.getresponse()
    assert len(answer.read()) == _BLOCK
    assert answer.status == 206


def _get_and_unpack(registry: Registry, relay: Relay, layer: Layer, folder: Path) -> Figures:
    """Into the page cache; nothing is synced."""
    unpacked = folder / "unpacked"
    unpacked.mkdir(parents=True)
    tar = folder / "layer.tar"
    registry.forget()
    os.sync()

    def fetch() -> None:
        url = f"http://{relay.host}/v2/{layer.name}/blobs/{layer.digest}"
        with urllib.request.urlopen(url, timeout=60) as answer, tar.open("wb", buffering=0) as file:
            shutil.copyfileobj(answer, file, MIB)

    fetched = _timed(fetch)
    extracted = _timed(lambda: subprocess.run(["tar", "-xf", tar, "-C", unpacked], check=True))
    served = registry.served()
    assert tar.stat().st_size == layer.size
    shutil.rmtree(folder)
    size = float(sum(request.bytes for request in served))
    return {
        "time": fetched + extracted,
        "requests": float(len(served)),
        "bytes": size,
        "bytes by then": size,
    }


def _timed(do: Callable[[], object]) -> float:
    started = time.monotonic()
    do()
    return time.monotonic() - started


def _print(layer: Layer, ours: list[Figures], hops: list[Figures], peer: list[Figures]) -> None:
    print(f"{layer.what}, {layer.size / MIB:.1f} MiB")
    print(f"{'':27}{'modelvold':>11}{'512 B each':>12}{'ratio':>9}{'GET, tar -x':>13}{'ratio':>9}")
    for what, key, scale in (
        ("until it is there, s", "time", 1),
        ("  of it the verb, s", "floor", 1),
        ("requests", "requests", 1),
        ("served, MiB", "bytes", MIB),
        ("served when all read, MiB", "bytes by then", MIB),
    ):
        form = ".0f" if key == "requests" else ".3f"
        us = statistics.median(run[key] for run in ours) / scale
        beside = _beside(us, hops, key, scale, form, 12) + _beside(us, peer, key, scale, form, 13)
        print(f"{what:27}{us:11{form}}{beside}".rstrip())


def _beside(us: float, runs: list[Figures], key: str, scale: int, form: str, width: int) -> str:
    """A peer's figure and the ratio of ours to it; blank where it has none."""
    if key not in runs[0]:
        return " " * (width + 9)
    theirs = statistics.median(run[key] for run in runs) / scale
    return f"{theirs:{width}{form}}{us / theirs:9.4f}"


if __name__ == "__main__":
    main()
