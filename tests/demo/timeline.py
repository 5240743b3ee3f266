"""The demo's timeline: how long each step took, and what the registry had served when it was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Moment:
    """`seconds` since the first step began, `served` bytes since then."""

    name: str
    seconds: float
    served: int


class Timeline:
    """Steps one after another. Only they are timed: the registry's log is read, which waits for quiet, in between."""

    def __init__(self, served: Callable[[], int], size: int) -> None:
        self.moments: list[Moment] = []
        self._served = served
        self._size = size
        self._seconds = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds += time.monotonic() - began
        self.moments.append(Moment(name, self._seconds, self._served()))

    def share(self, moment: Moment) -> float:
        """What the registry had served by then, as a share of the model."""
        return moment.served / self._size

    def show(self, console: Console) -> None:
        table = Table(title="timeline", title_justify="left")
        table.add_column("what was done")
        for heading in ("after", "registry's log: bytes served", "of the model"):
            table.add_column(heading, justify="right")
        for moment in self.moments:
            table.add_row(moment.name, f"{moment.seconds:.2f} s", f"{moment.served:,}", f"{self.share(moment):.1%}")
        console.print(table)
