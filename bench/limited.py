"""How fast is one large layer where a single connection gets 60 MB/s, as object stores give it?

    make bench        (or: python -m bench.limited [--rounds N] [--small])

One file of 2 GiB from the lab's nginx, in which the kernel paces each connection (tests/lab/nginx.py says why not nginx's `limit_rate`: it
counts by the request, after a second's worth at once, so that ranged requests of a segment each would not be limited at all,
`aria2c` partly, and a GET of the whole fully). Here a connection gets its rate whatever is asked on it, with no burst, and all sides
ask the same server. The line as a whole is not limited: 16 connections may have 960 MB/s. Of the peers only aria2c asks for ranges;
like oras it syncs nothing, and it verifies nothing either.
"""

from __future__ import annotations

import shutil

from bench import peers, report
from bench.report import OURS, Figures, Goal
from tests.lab.content import Generated
from tests.lab.needs import lazy_folder
from tests.lab.nginx import Nginx
from tests.lab.registry import Registry

MIB = 1 << 20


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--rate", type=int, default=60_000_000, help="of one connection, in bytes a second")
    chosen = parser.parse_args()
    size = 32 * MIB if chosen.small else 2048 * MIB
    folder = lazy_folder()
    figures = Figures()
    row = f"1 × {size // MIB} MiB, s"
    try:
        with Registry(folder / "registry") as registry, Nginx(folder / "nginx", registry, rate=chosen.rate) as nginx:
            subject = peers.push(registry, row, "bench/limited", {"model.safetensors": Generated(size, 1)})
            sides = {
                OURS: peers.modelvold(nginx.host, subject),
                "aria2c": peers.aria2c(nginx.host, subject),
                "containerd": peers.containerd(nginx.host, subject),
                "oras": peers.oras(nginx.host, subject),
            }
            peers.compete(figures, row, subject, sides, chosen.rounds, folder)
        print(report.machine(folder, peers.versions("aria2", "containerd", "oras", "nginx-light")))
        print(f"one layer from nginx, {chosen.rate / 1e6:g} MB/s a connection; medians of {chosen.rounds}")
        goals = [Goal(row, 0.125, ("containerd",)), Goal(row, 0.125, ("oras",)), Goal(row, 1.0, ("aria2c",))]
        report.show("limited", chosen, figures, goals)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
