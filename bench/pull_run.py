"""What does an ordinary image cost more, from its pull until its container has run, when its snapshots are ours and not overlayfs's?

    make bench        (or: python -m bench.pull_run [--rounds N] [--small])

One containerd with both snapshotters; `ctr images pull` and `ctr run --rm` of an image of 300 MB: a static busybox, and six gzip layers of
some 300 files of 1 KiB to 1 MiB each, half of whose bytes compress. It comes from docker-registry on loopback. Both take turns; each begins
with the registry's files in the page cache, nothing left to be written, and nothing of the image: what it left is removed, by
containerd's own collection, after each turn, off the clock.

Most of it is containerd's own work, a core and more for some seconds, and the cores of a virtual machine are not equally fast all the
time: one round says nothing to a twentieth. So there are many, each turn is compared with the other of its round, and the last line
says how far the rounds agree.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import random
import shutil
import statistics
import tarfile
from concurrent.futures import ThreadPoolExecutor

from bench import peers, report
from bench.measure import timed, turns, warm
from bench.report import OURS, Figures, Goal
from tests.lab import debian, documents, needs
from tests.lab.containerd import Containerd
from tests.lab.content import Generated, digest_of
from tests.lab.daemon import Daemon, Settings
from tests.lab.registry import Registry
from tests.lab.services import Snapshots

MIB = 1 << 20
_REPOSITORY = "bench/ordinary"
_LAYERS = 6
_LAYER = 50 * MIB
_PIECE = 4096
_TEXT = b"".join(b"%08d: what compresses, and well at that\n" % n for n in range(_PIECE))
_PEER = "overlayfs"
_WHOLE = "pull + run, s"
_RATIO = "pull + run by overlayfs's of that round"


def main() -> None:
    parser = report.arguments(__doc__)
    parser.set_defaults(rounds=21)
    chosen = parser.parse_args()
    folder = needs.lazy_folder()
    figures = Figures()
    try:
        with Registry(folder / "registry") as registry:
            size, files = _push(registry, MIB if chosen.small else _LAYER)
            settings: Settings = {"log": {"level": "info"}}
            daemon = Daemon(folder / "daemon", settings, hosts_dir=folder / "containerd/certs.d")
            containerd = Containerd(folder / "containerd", "none", daemon.for_containerd)
            containerd.hosts(registry)
            with daemon, containerd:
                for number, who in enumerate(turns([OURS, _PEER], chosen.rounds)):
                    _turn(figures, who, containerd, registry, f"turn-{number}")
            assert containerd.leftovers == []
        for ours, theirs in zip(*(figures.rows[_WHOLE][who] for who in (OURS, _PEER)), strict=True):
            figures.add(_RATIO, OURS, ours / theirs)
        print(report.machine(folder, peers.versions("containerd", "docker-registry")))
        print(f"an image of {size / 1e6:.0f} MB, {files} files, {_LAYERS + 1} layers; s, medians of {chosen.rounds}")
        report.show("pull_run", chosen, figures, [Goal(_RATIO, 1.05)])
        print(_agreement(figures))
    finally:
        shutil.rmtree(folder)


def _turn(figures: Figures, who: str, containerd: Containerd, registry: Registry, name: str) -> None:
    reference = f"{registry.host}/{_REPOSITORY}:v1"
    warm(path for path in (registry.folder / "storage").rglob("data"))
    os.sync()
    hosts = ["--hosts-dir", str(containerd.certificates)]
    pulled = timed(lambda: containerd.ctr("images", "pull", "--snapshotter", who, *hosts, reference))
    command = ["/bin/sh", "-c", "test -e /files/0/0"]
    ran = timed(lambda: containerd.ctr_run(reference, name, *command, flags=["--rm", "--snapshotter", who]))
    for row, seconds in {"pull, s": pulled, "run, s": ran, _WHOLE: pulled + ran}.items():
        figures.add(row, who, seconds)
    containerd.ctr("images", "rm", "--sync", reference)
    with Snapshots(containerd.socket, who) as asked:
        assert asked.list() == []
    assert containerd.ctr("content", "ls", "-q") == ""


def _agreement(figures: Figures) -> str:
    ratios = figures.rows[_RATIO][OURS]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else math.nan
    return f"the rounds' mean: {statistics.mean(ratios):.3f}, its standard error {error:.3f}"


def _push(registry: Registry, layer: int) -> tuple[int, int]:
    """Bytes unpacked, and files."""
    busybox = documents.busybox_layer(debian.busybox())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = list(threads.map(lambda number: _layer(number, layer), range(_LAYERS)))
    tars = [busybox, *(tar for tar, _ in made)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        blobs = list(threads.map(lambda tar: gzip.compress(tar, 6, mtime=0), tars))
    layers = [
        {**registry.push.described(_REPOSITORY, blob), "mediaType": f"{documents.IMAGE_LAYER}+gzip"} for blob in blobs
    ]
    config = registry.push.described(_REPOSITORY, documents.image_config([digest_of(tar) for tar in tars]))
    registry.push.manifest(_REPOSITORY, "v1", documents.image_manifest(config, layers))
    return sum(map(len, tars)), sum(files for _, files in made)


def _layer(number: int, size: int) -> tuple[bytes, int]:
    """A tar of so many bytes, and how many files are in it; most are small, most bytes are in large ones."""
    order = random.Random(number)
    buffer, files = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        while buffer.tell() < size:
            entry = tarfile.TarInfo(f"files/{number}/{files}")
            entry.size = int(1024 * 2 ** order.uniform(0, 10))
            tar.addfile(entry, io.BytesIO(_half(entry.size, seed=(number << 20) + files)))
            files += 1
    return buffer.getvalue(), files


def _half(size: int, seed: int) -> bytes:
    """Pieces that do not compress and pieces that do, in turns."""
    noise = Generated(size, seed).at(0, size)
    return b"".join(
        noise[at : at + _PIECE] if at // _PIECE % 2 else _TEXT[at % len(_TEXT) :][: min(_PIECE, size - at)]
        for at in range(0, size, _PIECE)
    )


if __name__ == "__main__":
    main()
