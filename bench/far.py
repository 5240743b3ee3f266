"""How long does a model of many files take from a registry that is a round trip of 20 ms away?

    make bench        (or: python -m bench.far [--rounds N] [--small] [--round-trip MILLISECONDS])

Two artifacts in docker-registry behind the lab's relay (tests/lab/relay.py: it delays, limits no rate, and has no slow start, which spares
whoever opens more connections): 300 raw layers of 4 to 64 KiB, and 64 of 4 MiB. `modelvold pull` against `oras pull` as it is (three
layers at a time) and with 16 at a time, and crane. All sides go through the same relay, a loop in Python; what it lets through at all is
told by *one GET*, of one blob as large as all layers together, into memory.
"""

from __future__ import annotations

import random
import shutil
import urllib.request

from bench import peers, report
from bench.measure import timed
from bench.peers import Side, Subject
from bench.report import OURS, Figures, Goal
from tests.lab.content import Content, Generated
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry
from tests.lab.relay import Relay

KIB = 1 << 10
MIB = 1 << 20


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--round-trip", type=float, default=20, help="in milliseconds")
    chosen = parser.parse_args()
    many, large = (10, 4) if chosen.small else (300, 64)
    sizes = random.Random(1)
    models = {
        f"{many} × 4 to 64 KiB, s": [sizes.randint(4 * KIB, 64 * KIB) for _ in range(many)],
        f"{large} × 4 MiB, s": [4 * MIB] * large,
    }
    folder = lazy_folder()
    figures, goals = Figures(), list[Goal]()
    try:
        with (
            Registry(folder / "registry") as registry,
            Relay(registry.port, chosen.round_trip / 1000) as relay,
        ):
            for number, (row, layers) in enumerate(models.items()):
                files: dict[str, Content] = {f"part-{n:03}.bin": Generated(size, n) for n, size in enumerate(layers)}
                subject = peers.push(registry, row, f"bench/far-{number}", files, image=False)
                sides = {
                    OURS: peers.modelvold(relay.host, subject),
                    "oras": peers.oras(relay.host, subject),
                    "oras, 16 at once": peers.oras(relay.host, subject, "--concurrency", "16"),
                    "crane": peers.crane(relay.host, subject),
                    "one GET": _one_get(registry, relay, subject),
                }
                peers.compete(figures, row, subject, sides, chosen.rounds, folder, unkept=["one GET"])
                goals += [Goal(row, 0.3, ("oras",)), Goal(row, 0.3, ("crane",))]
        print(report.machine(folder, peers.versions("oras", "crane", "docker-registry")))
        print(f"docker-registry behind a round trip of {chosen.round_trip:g} ms; medians of {chosen.rounds}")
        report.show("far", chosen, figures, goals)
    finally:
        shutil.rmtree(folder)


def _one_get(registry: Registry, relay: Relay, subject: Subject) -> Side:
    digest = registry.push.blob(subject.repository, Generated(subject.size, 1000))
    url = f"http://{relay.host}/v2/{subject.repository}/blobs/{digest}"

    def get() -> None:
        received = 0
        with urllib.request.urlopen(url, timeout=60) as answer:
            while count := len(answer.read(MIB)):
                received += count
        assert received == subject.size

    return lambda _: timed(get)


if __name__ == "__main__":
    main()
