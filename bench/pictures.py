"""Pictures where they say more than a table: small SVGs in bench/plots. Without matplotlib (`pip install -e '.[bench]'`) a line says so."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLOTS = Path(__file__).parent / "plots"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "modelvold",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def lines(
    name: str,
    chosen: argparse.Namespace,
    title: str,
    axes: tuple[str, str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Each curve through its points."""

    def draw(at: Axes) -> None:
        for label, points in curves.items():
            at.plot([x for x, _ in points], [y for _, y in points], label=label, linewidth=1.4)

    _save(name, chosen, title, axes, draw)


def distributions(
    name: str, chosen: argparse.Namespace, title: str, axis: str, samples: Mapping[str, Sequence[float]], bound: float
) -> None:
    """What share of each sample is at most so much, on a logarithmic axis; a line at `bound`."""

    def draw(at: Axes) -> None:
        for label, values in samples.items():
            at.step(sorted(values), [(n + 1) / len(values) for n in range(len(values))], where="post", label=label)
        at.axvline(bound, color="black", linestyle="--", linewidth=1, label="goal")
        at.set_xscale("log")

    _save(name, chosen, title, (axis, "share of reads"), draw)


def _save(
    name: str, chosen: argparse.Namespace, title: str, axes: tuple[str, str], draw: Callable[[Axes], None]
) -> None:
    """A dry run's goes beside its raw rounds."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no picture of {name}: matplotlib is not here (pip install -e '.[bench]')")
        return
    path = chosen.save / f"{name}-small.svg" if chosen.small else _PLOTS / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        at = figure.subplots()
        draw(at)
        at.set_title(title, loc="left")
        at.set_xlabel(axes[0])
        at.set_ylabel(axes[1])
        at.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
    print(f"picture: {path}")
