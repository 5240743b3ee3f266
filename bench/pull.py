"""How fast is a whole model pulled from an unlimited registry on loopback, beside the peers and beside what the machine can do at all?

    make bench        (or: python -m bench.pull [--rounds N] [--small])

`modelvold pull`, from the call to its return, against containerd, oras and crane (bench/peers.py says what each does for its
time): 4 files of 512 MiB, one of 2 GiB, both from docker-registry and from nginx (tests/lab/nginx.py, no rate set), and a real sentence
transformer (a file of 87 MiB, ten small ones). Beside them three floors, measured in the same rounds:

- write+fsync: the same files written by one thread from memory, each synced.
- recv+write: a connection a file, one after another, `readinto` and `write` of 256 KiB in one loop; nothing is hashed or synced.
- sha256: the same bytes hashed from memory, a file a thread, a thread a core; of one file there is one thread.

All take turns; every one has a fresh folder, and the registry's files in the page cache.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import peers, report
from bench.measure import timed
from bench.peers import Side, Subject
from bench.report import OURS, Figures, Goal
from tests.lab import debian
from tests.lab.content import Content, Generated, files_of, size_of
from tests.lab.needs import lazy_folder
from tests.lab.nginx import Nginx
from tests.lab.registry import Registry

MIB = 1 << 20
_PIECE = 256 << 10
_BLOCK = 64 * MIB  # hashed and written again and again; larger than a cache


def main() -> None:
    chosen = report.arguments(__doc__).parse_args()
    unit = 4 * MIB if chosen.small else 512 * MIB
    models: dict[str, dict[str, Content]] = {
        f"4 × {unit // MIB} MiB": {f"model-{n}.safetensors": Generated(unit, n) for n in range(4)},
        f"1 × {4 * unit // MIB} MiB": {"model.safetensors": Generated(4 * unit, 4)},
        "sentence transformer": files_of(debian.real_model()),
    }
    folder = lazy_folder()
    figures, goals = Figures(), list[Goal]()
    try:
        with Registry(folder / "registry") as registry, Nginx(folder / "nginx", registry) as nginx:
            for number, (what, files) in enumerate(models.items()):
                subject = peers.push(registry, what, f"bench/pull-{number}", files)
                hosts = {"docker-registry": registry.host, "nginx": nginx.host}
                for server, host in list(hosts.items())[: 1 if chosen.small and number else 2]:
                    row = f"{what}, {server}, s"
                    sides = _sides(host, subject, files)
                    peers.compete(figures, row, subject, sides, chosen.rounds, folder, unkept=["sha256"])
                    goals += [Goal(row, 0.45, ("containerd",)), Goal(row, 1.0, ("oras", "write+fsync"))]
                    goals += [Goal(row, peers=("recv+write", "sha256"))]
        print(report.machine(folder, peers.versions("containerd", "oras", "crane", "docker-registry", "nginx-light")))
        print(f"pulls from loopback, verified and synced; medians of {chosen.rounds}")
        report.show("pull", chosen, figures, goals)
    finally:
        shutil.rmtree(folder)


def _sides(host: str, subject: Subject, files: Mapping[str, Content]) -> dict[str, Side]:
    sizes = [size_of(content) for content in files.values()]
    block = memoryview(Generated(_BLOCK, 1).at(0, _BLOCK))
    return {
        OURS: peers.modelvold(host, subject),
        "containerd": peers.containerd(host, subject),
        "oras": peers.oras(host, subject),
        "crane": peers.crane(host, subject),
        "write+fsync": lambda folder: timed(lambda: _write(sizes, block, folder)),
        "recv+write": lambda folder: timed(lambda: _receive(host, subject, folder)),
        "sha256": lambda _: timed(lambda: _hash(sizes, block)),
    }


def _write(sizes: list[int], block: memoryview, folder: Path) -> None:
    for number, size in enumerate(sizes):
        with (folder / str(number)).open("wb", buffering=0) as file:
            for at in range(0, size, _PIECE):
                start = at % len(block)
                file.write(block[start : start + min(_PIECE, size - at)])
            os.fsync(file.fileno())


def _receive(host: str, subject: Subject, folder: Path) -> None:
    buffer = memoryview(bytearray(_PIECE))
    for number, digest in enumerate(subject.digests):
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", f"/v2/{subject.repository}/blobs/{digest}")
        answer = connection.getresponse()
        assert answer.status == 200
        with (folder / str(number)).open("wb", buffering=0) as file:
            while count := answer.readinto(buffer):
                file.write(buffer[:count])
        connection.close()


def _hash(sizes: list[int], block: memoryview) -> None:
    def whole(size: int) -> None:
        summed = hashlib.sha256()
        for at in range(0, size, _PIECE):
            start = at % len(block)
            summed.update(block[start : start + min(_PIECE, size - at)])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(whole, sizes))


if __name__ == "__main__":
    main()
