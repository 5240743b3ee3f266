"""Who tells of pulls: lines, events of JSON, or a screen. Each is a `with`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from modelvold.cli import bars
from modelvold.cli.bars import Pulled
from modelvold.cli.show import said
from modelvold.errors import Failure
from modelvold.lending.report import Progress

if TYPE_CHECKING:
    from rich.text import Text

#: Seconds between two events of one pull.
_PACE = 0.5
_ASKING, _WAITING = "asking the registry", "waits for the one before"
_DONE, _LEFT = "\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}"


class Teller(Protocol):
    """Of one pull after the other: steps, and what became of it."""

    def on_begun(self, reference: str) -> None: ...

    def on_step(self, reference: str, step: Progress) -> None: ...

    def on_pulled(self, pulled: Pulled) -> None: ...

    def on_failed(self, reference: str, failure: Failure) -> None: ...


class Lines:
    """Nothing but what became of them, on standard error."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def on_begun(self, reference: str) -> None:
        pass

    def on_step(self, reference: str, step: Progress) -> None:
        pass

    def on_pulled(self, pulled: Pulled) -> None:
        self._say(bars.outcome(pulled))

    def on_failed(self, reference: str, failure: Failure) -> None:
        text = said(failure.message, failure.remedy)
        if text != self._last:  # a daemon that does not run is told once, whatever was asked of it
            self._say(text)
        self._last = text

    def _say(self, text: str) -> None:
        click.echo(text, err=True)


class Events(Lines):
    """One JSON object on a line of standard output; failures on standard error, too."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def on_begun(self, reference: str) -> None:
        self._next = 0.0

    def on_step(self, reference: str, step: Progress) -> None:
        if step.done or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PACE
        names = ("size", "present", "durable", "verified", "rate", "eta")
        _emit("progress", reference, {name: getattr(step, name) for name in names})

    def on_pulled(self, pulled: Pulled) -> None:
        names = ("size", "fetched", "seconds", "rate")
        _emit("done", pulled.reference, {name: getattr(pulled, name) for name in names})

    def on_failed(self, reference: str, failure: Failure) -> None:
        kind = type(failure).__name__
        _emit("failed", reference, {"kind": kind, "cause": failure.message, "next": failure.remedy})
        super().on_failed(reference, failure)


class Screen(Lines):
    """A bar for each of them, as long as it is not over."""

    def __init__(self, references: Sequence[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._steps: dict[str, Progress | str] = dict.fromkeys(references, _WAITING)
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_begun(self, reference: str) -> None:
        self._show(reference, _ASKING)

    def on_step(self, reference: str, step: Progress) -> None:
        self._show(reference, step)

    def on_pulled(self, pulled: Pulled) -> None:
        self._end(pulled.reference)
        self._say(bars.outcome(pulled, self._console.width))

    def on_failed(self, reference: str, failure: Failure) -> None:
        self._end(reference)
        super().on_failed(reference, failure)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def _show(self, reference: str, step: Progress | str) -> None:
        self._steps[reference] = step
        self._draw()

    def _end(self, reference: str) -> None:
        self._steps.pop(reference, None)
        self._draw()

    def _draw(self) -> None:
        from rich.text import Text

        width = self._console.width - 1  # some terminals wrap already when the last column is written
        lines = [line for reference, step in self._steps.items() for line in _drawn(reference, step, width)]
        self._live.update(Text("\n", no_wrap=True).join(lines), refresh=True)


def _drawn(reference: str, step: Progress | str, width: int) -> tuple[Text, Text]:
    from rich.text import Text

    if isinstance(step, str):
        return Text(bars.head(reference, None, width)), Text(bars.indent(step, width), "bright_black")
    done, left, said = bars.bar(step, width)
    parts = (bars.indent("", width), (_DONE * done, "green"), (_LEFT * left, "bright_black"), said)
    return Text(bars.head(reference, step, width)), Text.assemble(*parts)


def _emit(event: str, reference: str, fields: dict[str, Any]) -> None:
    click.echo(json.dumps({"event": event, "reference": reference, **fields}, ensure_ascii=False))
