"""What every bench says, in one form: the machine, a table of medians with ratios of one run, which goals were met, the raw rounds.

    chosen = report.arguments(__doc__).parse_args()             # --rounds, --small, --save
    figures = Figures()
    figures.add("4 × 512 MiB, s", OURS, 1.93)                   # once a round; likewise for each peer
    figures.add("4 × 512 MiB, s", "oras", 2.01)
    report.show("pull", chosen, figures, [Goal("4 × 512 MiB, s", 1.0, ("oras",))])

A ratio is ours by the peer's, of the medians. A figure that a peer has not is blank.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.lab import debian

OURS = "modelvold"


class Figures:
    """What was measured, round by round: row → who → one value a round. A row's name ends with its unit; rows and columns stand in
    the order in which they first came."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, who: str, value: float) -> None:
        self.rows.setdefault(row, {}).setdefault(who, []).append(value)

    def median(self, row: str, who: str) -> float | None:
        values = self.rows.get(row, {}).get(who)
        return statistics.median(values) if values else None

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys([OURS, *(who for row in self.rows.values() for who in row)]))


@dataclass(frozen=True, slots=True)
class Goal:
    """Ours is at most `most` (at least `least`) times the largest of the `peers`; without peers, that itself, in the row's unit. Without
    either it is no goal, and the ratio alone is told."""

    row: str
    most: float | None = None
    peers: tuple[str, ...] = ()
    least: float | None = None
    ours: str = OURS

    def judge(self, figures: Figures) -> str:
        """One line: what was wanted, what was seen, whether it is met."""
        ours = figures.median(self.row, self.ours)
        theirs = [value for peer in self.peers if (value := figures.median(self.row, peer)) is not None]
        if ours is None or len(theirs) < len(self.peers):
            return f"{self._wanted()}: not measured"
        seen = ours / max(theirs) if theirs else ours
        if self.most is None and self.least is None:
            return f"{self._wanted()}: {seen:.3f}"
        met = (self.most is None or seen <= self.most) and (self.least is None or seen >= self.least)
        return f"{self._wanted()}: {seen:.3f}, {'met' if met else 'MISSED'}"

    def _wanted(self) -> str:
        bounds = [("≤", self.most), ("≥", self.least)]
        bound = " ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)
        others = " and ".join(self.peers)
        to = f"of the larger of {others}" if len(self.peers) > 1 else f"of {others}" if others else ""
        return f"goal {self.row}: {bound} {to}".rstrip() if bound else f"{self.row}: share {to}"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a dry run of seconds; its figures say nothing")
    parser.add_argument("--save", type=Path, default=debian.folder() / "bench", help="folder for the raw rounds")
    return parser


def machine(folder: Path, versions: Mapping[str, str] | None = None) -> str:
    """What the figures were taken on, in lines; `folder` tells the file system, `versions` the peers'."""
    memory = psutil.virtual_memory().total / (1 << 30)
    lines = [f"machine: {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, {_file_system(folder)}"]
    lines[0] += f", Linux {platform.release()}, Python {platform.python_version()}"
    if versions:
        lines.append("peers: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(lines)


def table(figures: Figures) -> str:
    """Rows of medians: ours, then each peer's with the ratio of ours to it."""
    columns = figures.columns
    label = max((len(row) for row in figures.rows), default=0) + 2
    widths = [max(len(name) + 2, 11) for name in columns]
    head = [f"{columns[0]:>{widths[0]}}"]
    head += [f"{name:>{width}}{'ratio':>8}" for name, width in zip(columns[1:], widths[1:], strict=True)]
    lines = [" " * label + "".join(head)]
    for row in figures.rows:
        ours = figures.median(row, columns[0])
        cells = [f"{_number(ours):>{widths[0]}}"]
        for name, width in zip(columns[1:], widths[1:], strict=True):
            theirs = figures.median(row, name)
            ratio = _number(ours / theirs, whole=False) if ours is not None and theirs else ""
            cells.append(f"{_number(theirs):>{width}}{ratio:>8}")
        lines.append(f"{row:{label}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def show(bench: str, chosen: argparse.Namespace, figures: Figures, goals: Sequence[Goal] = ()) -> None:
    """Prints the table and the goals, and saves the raw rounds as `<save>/<bench>.json` (of a dry run, `<bench>-small.json`)."""
    print(table(figures))
    for goal in goals:
        print(goal.judge(figures))
    chosen.save.mkdir(parents=True, exist_ok=True)
    path = chosen.save / f"{bench}{'-small' if chosen.small else ''}.json"
    path.write_text(
        json.dumps({"bench": bench, "rounds": chosen.rounds, "rows": figures.rows}, ensure_ascii=False, indent=1) + "\n"
    )


def _number(value: float | None, *, whole: bool = True) -> str:
    """About four digits that say something; a `whole` one as such."""
    if value is None:
        return ""
    if value >= 1000 or (whole and value == int(value)):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"


def _file_system(folder: Path) -> str:
    at = os.path.realpath(folder)
    mounts = [
        part
        for part in psutil.disk_partitions(all=True)
        if at == part.mountpoint or at.startswith(part.mountpoint.rstrip("/") + "/")
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown file system"
