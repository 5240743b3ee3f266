"""How far something is that takes long: a bar on a terminal, elsewhere a line for every step, of text or of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TypeVar

import click

from modelvold.cli import show
from modelvold.cli.asking import as_json
from modelvold.lending.report import Checked, Progress
from modelvold.store.amount import size

_Step = TypeVar("_Step", Progress, Checked)


def told(steps: Iterator[_Step], *, json_: bool = False, waiting: str = "asking the registry") -> _Step | None:
    """Shows every step, and until the first that it is `waiting`; the last one."""
    return _bar(steps, waiting) if sys.stderr.isatty() and not json_ else _lines(steps, json_)


def _lines(steps: Iterator[_Step], json_: bool) -> _Step | None:
    last = None
    for last in steps:
        click.echo(as_json(last) if json_ else _line(last), err=not json_)
        sys.stdout.flush()
    return last


def _bar(steps: Iterator[_Step], waiting: str) -> _Step | None:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    last = None
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(waiting, total=None)
        for last in steps:
            completed, parts = _beside(last)
            bar.update(task, total=last.size, completed=completed, description="  ".join(parts))
    return last


def _line(step: Progress | Checked) -> str:
    return show.step(step) if isinstance(step, Progress) else show.check(step)


def _beside(step: Progress | Checked) -> tuple[int, tuple[str, ...]]:
    """The bytes that the bar stands at, and what is said beside it."""
    if isinstance(step, Progress):
        completed, found = step.present, f"{show.share(step.verified, step.size)} verified"
    else:
        completed, found = step.read, show.wrong(step)
    return completed, (f"{show.share(completed, step.size)} of {size(step.size)}", found, show.rate(step.rate))
