"""A pull as a person sees it: two lines on a terminal while it runs, one when it is over. Pure.

On a narrow terminal less is said; no line is longer than the terminal is wide, for one that wraps cannot be drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelvold.cli.show import duration, one_line, rate, share, shortened
from modelvold.lending.report import Progress
from modelvold.store.amount import size

_INDENT, _GAP = 2, 2
_SHORTEST_BAR = 6
#: A reference is left at least so many columns.
_SHORTEST_NAME = 12
#: As wide as amounts, rates, times and shares become, so that nothing moves while they change.
_SIZE, _RATE, _LEFT, _VERIFIED = 8, 10, 16, 14


@dataclass(frozen=True, slots=True)
class Pulled:
    """What became of one: `fetched` of `size` bytes came meanwhile, in so many `seconds`."""

    reference: str
    size: int
    fetched: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.fetched / self.seconds if self.seconds > 0 else 0.0


def head(reference: str, step: Progress | None, width: int) -> str:
    """Which one, and how long it still takes."""
    left = _left(step).rjust(_LEFT) if step else ""
    room = width - len(left) - _GAP
    if not left or room < _SHORTEST_NAME:
        return shortened(one_line(reference), width)
    return f"{shortened(one_line(reference), room):<{room + _GAP}}{left}"


def bar(step: Progress, width: int) -> tuple[int, int, str]:
    """Columns of a bar that are done and that are not, and what is said behind it, as much as there is room for."""
    parts = (
        f"{size(step.present):>{_SIZE}} of {size(step.size)}",
        rate(step.rate).rjust(_RATE),
        f"{share(step.verified, step.size)} verified".rjust(_VERIFIED),
    )
    said, left = "", max(width - _INDENT, 1)
    for part in parts:
        if left - _GAP - len(part) < _SHORTEST_BAR:
            break
        said, left = f"{said}{' ' * _GAP}{part}", left - _GAP - len(part)
    done = left * step.present // step.size if step.size else left
    return min(done, left), left - min(done, left), said


def outcome(pulled: Pulled, width: int | None = None) -> str:
    """The one line that stays; what it says of the reference is cut to fit in `width` columns."""
    amount = size(pulled.size) if pulled.fetched == pulled.size else f"{size(pulled.fetched)} of {size(pulled.size)}"
    came = f"{amount} in {duration(pulled.seconds)} ({rate(pulled.rate)})"
    said = f": {came if pulled.fetched else f'{size(pulled.size)} already here'}, verified"
    first = "pulled "
    room = max(_SHORTEST_NAME, width - len(first) - len(said)) if width else None
    return f"{first}{shortened(one_line(pulled.reference), room)}{said}"


def indent(text: str, width: int) -> str:
    """What is said in the place of a bar."""
    return shortened(f"{' ' * _INDENT}{text}", width)


def _left(step: Progress) -> str:
    if step.present >= step.size:
        return "checking"
    return f"{duration(step.eta)} left" if step.eta >= 0 else "? left"
