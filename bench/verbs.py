"""What does each of the ten verbs cost, beside overlayfs within containerd, and beside overlayfs behind the same proxy?

    make bench        (or: python -m bench.verbs [--rounds N] [--calls N] [--snapshots N] [--small] [--without-go])

One client asks, one call after another, for each of three snapshotters of one containerd:

- modelvold: containerd's metadata (bbolt, synced), its gRPC proxy, and the daemon.
- overlayfs: the same metadata, and containerd's own overlayfs, in its process.
- proxied: the same metadata and proxy, and that same overlayfs, in a process of its own (bench/overlay, in Go, against Debian's sources
  of containerd; `--without-go` leaves it out).

It asks at containerd's socket; and, in rows of their own, at the sockets of two others like the two that have one, of which no
containerd knows. Each has a number of committed snapshots and a chain of five, on which each call's snapshot stands; nothing is mounted,
and nothing is in it. A Remove at containerd's socket is one of its metadata: the snapshotter's part comes in a collection, with a Cleanup
at its end, which has a row of its own. A List at containerd's socket is a Stat of each snapshot.

All take turns; medians of the rounds' medians, and of their 99th percentiles.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import peers, report
from bench.measure import timed, turns
from bench.report import OURS, Figures
from tests.lab import golang, needs
from tests.lab.containerd import Containerd, Modelvold
from tests.lab.daemon import Daemon, Settings
from tests.lab.program import Program
from tests.lab.services import Collector, Snapshots

_OVERLAY, _PROXIED = "overlayfs", "proxied"
_OWN = " at its own socket"
_CHAIN = 5
_KEEP = {"containerd.io/gc.root": "bench"}
_LABELS = {
    f"containerd.io/snapshot/{name}": "sha256:" + "0" * 64 for name in ("cri.layer-digest", "cri.manifest-digest")
}
_LABEL = "containerd.io/snapshot/bench"


@dataclass(frozen=True, slots=True)
class Side:
    """Who is asked, `where`, and what reclaims what was removed."""

    who: str
    where: str
    asked: Snapshots
    reclaim: Callable[[], None]


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--calls", type=int, default=200, help="of each verb, a round")
    parser.add_argument("--snapshots", type=int, default=100, help="that are there meanwhile")
    parser.add_argument("--without-go", action="store_true", help="which takes minutes to fetch and build, once")
    chosen = parser.parse_args()
    if chosen.small:
        chosen.calls, chosen.snapshots = 10, 5
    folder = needs.lazy_folder()
    figures = Figures()
    try:
        with ExitStack() as life:
            sides = _sides(folder, life, with_go=not chosen.without_go)
            for side in sides:
                _fill(side, chosen.snapshots)
            for number, side in enumerate(turns(sides, chosen.rounds)):
                _measure(figures, side, chosen.calls, f"{number}")
        packages = ["containerd"] if chosen.without_go else ["containerd", golang.SOURCES]
        print(report.machine(folder, peers.versions(*packages)))
        print(f"ms of a call; {chosen.snapshots} snapshots; {chosen.calls} calls a round; medians of {chosen.rounds}")
        report.show("verbs", chosen, figures)
    finally:
        shutil.rmtree(folder)


def _sides(folder: Path, life: ExitStack, *, with_go: bool) -> list[Side]:
    def modelvold(name: str) -> Daemon:
        settings: Settings = {"log": {"level": "info"}}
        return life.enter_context(Daemon(folder / name, settings, hosts_dir=folder / "containerd/certs.d"))

    def overlay(name: str) -> Path:
        socket = folder / f"{name}.sock"
        environment = {"ROOT": str(folder / name), "SOCKET": str(socket)}
        program = golang.test_program(Path(__file__).with_name("overlay"))
        life.enter_context(Program(name, [program], folder / f"{name}.log", socket.exists, environment))
        return socket

    def asked(socket: Path, snapshotter: str) -> Snapshots:
        return life.enter_context(Snapshots(socket, snapshotter))

    proxies = {_PROXIED: overlay("overlay")} if with_go else {}
    containerd = life.enter_context(_Containerd(folder / "containerd", modelvold("daemon").for_containerd, proxies))
    collector = life.enter_context(Collector(containerd.socket))
    sides = [Side(who, "", asked(containerd.socket, who), collector.run) for who in (OURS, _OVERLAY, *proxies)]
    alone = {OURS: modelvold("alone").socket, **({_PROXIED: overlay("overlay-alone")} if with_go else {})}
    for who, socket in alone.items():
        client = asked(socket, who)
        sides.append(Side(who, _OWN, client, client.cleanup))
    return sides


class _Containerd(Containerd):
    """With other snapshotters behind sockets, by name. It collects when it is told to, not every hundred changes."""

    def __init__(self, root: Path, modelvold: Modelvold, proxies: Mapping[str, Path]) -> None:
        super().__init__(root, "none", modelvold)
        self._proxies = proxies

    def _configuration(self) -> str:
        never = "\n[plugins.'io.containerd.gc.v1.scheduler']\nmutation_threshold = 0\ndeletion_threshold = 0\n"
        return (
            super()._configuration()
            + never
            + "".join(
                f'\n[proxy_plugins.{name}]\ntype = "snapshot"\naddress = "{socket}"\n'
                for name, socket in self._proxies.items()
            )
        )


def _fill(side: Side, count: int) -> None:
    labels = {**_KEEP, **_LABELS}
    for name, parent in [
        *((f"filler-{n}", "") for n in range(count)),
        *((f"base-{n}", _base(n)) for n in range(_CHAIN)),
    ]:
        side.asked.prepare(f"p {name}", parent, labels)
        side.asked.commit(name, f"p {name}", labels)


def _base(number: int) -> str:
    return f"base-{number - 1}" if number else ""


def _measure(figures: Figures, side: Side, calls: int, turn: str) -> None:
    """One turn: every verb so many times, those that list a tenth of it."""
    took: dict[str, list[float]] = {}

    def ask(verb: str, do: Callable[[], object]) -> None:
        took.setdefault(verb, []).append(timed(do) * 1000)

    asked, top, labels = side.asked, _base(_CHAIN), {**_KEEP, **_LABELS}
    for number in range(calls):
        key, view, name = (f"{what}-{turn}-{number}" for what in ("key", "view", "name"))
        ask("Prepare", lambda key=key: asked.prepare(key, top, labels))  # type: ignore[misc]
        ask("View", lambda view=view: asked.view(view, top, _KEEP))  # type: ignore[misc]
        ask("Mounts", lambda key=key: asked.mounts(key))  # type: ignore[misc]
        ask("Stat", lambda key=key: asked.stat(key))  # type: ignore[misc]
        ask("Update", lambda key=key: asked.label(key, _LABEL, "new"))  # type: ignore[misc]
        ask("Usage", lambda key=key: asked.usage(key))  # type: ignore[misc]
        if number % 10 == 0:
            ask("List", asked.list)
            ask("List of one", lambda key=key: asked.list(f"name=={key}"))  # type: ignore[misc]
        ask("Commit", lambda key=key, name=name: asked.commit(name, key, labels))  # type: ignore[misc]
        ask("Remove", lambda view=view: asked.remove(view))  # type: ignore[misc]
        asked.remove(name)
        if side.where and number % 10 == 9:
            ask("Cleanup of 20", side.reclaim)
    reclaimed = timed(side.reclaim) * 1000
    assert len([info for info in asked.list() if f"-{turn}-" in info.name]) == 0
    for verb, times in took.items():
        figures.add(f"{verb}{side.where}", side.who, statistics.median(times))
    if not side.where:
        figures.add(f"collection of {2 * calls}", side.who, reclaimed)
    for verb, times in took.items():
        figures.add(f"{verb}{side.where}, p99", side.who, sorted(times)[math.ceil(0.99 * len(times)) - 1])


if __name__ == "__main__":
    main()
