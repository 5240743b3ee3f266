"""`doctor`: what works on this machine, what does not, what mends it. Works without a daemon."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelvold.cli.show import one_line
from modelvold.rpc import places

if TYPE_CHECKING:
    from modelvold.doctor import Report

_PATH = click.Path(path_type=Path)
#: Wherever it goes: a terminal, a ticket, a log.
_WIDTH = 80
_CODE = " " * 4
_MEND = "mend: "


@click.command(epilog="Example: modelvold doctor registry.example/models/llama:8b")
@click.argument("ref", required=False)
@click.option("--json", "json_", is_flag=True, help="One JSON object on a line: lines, backend.")
@click.option(
    "--config", "file", type=_PATH, metavar="F", help=f"Settings [default: {places.DEFAULT_FILE}, if it is there]."
)
@click.option("--root", type=_PATH, metavar="DIR", help="Where models are kept; overrides `[store] root`.")
@click.option("--run", type=_PATH, metavar="DIR", help=f"Where mounts and socket are [default: {places.DEFAULT_RUN}].")
@click.option(
    "--containerd",
    "containerd_file",
    type=_PATH,
    metavar="F",
    default=Path("/etc/containerd/config.toml"),
    show_default=True,
    help="containerd's configuration.",
)
def doctor(
    ref: str | None, *, json_: bool, file: Path | None, root: Path | None, run: Path | None, containerd_file: Path
) -> int:
    """Check kernel, privileges, store and containerd, and the model REF if one is given.

    Changes nothing, and needs no daemon. Each line is ok, warn or bad; what is not ok says what mends it. Exit status 1
    when anything is bad.
    """
    from modelvold.doctor import examine

    # So that what was started ends when we are told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = examine(ref, file, root, run, containerd_file.absolute())
    if json_:
        click.echo(json.dumps(asdict(report)))
    else:
        click.echo("\n".join(shown(report)))
    return int(report.is_bad)


def shown(report: Report) -> Iterator[str]:
    """The whole report; no line is longer than 80 columns, but for what is to be copied as it is."""
    for group, lines in groupby(report.lines, key=lambda line: line.group):
        yield group
        for line in lines:
            seen = f": {line.seen}" if line.seen else ""
            yield from _wrapped(f"  {line.level:<4}  ", one_line(f"{line.what}{seen}"))
            yield from _mend(line.mend)
        yield ""
    yield from _verdict(report)


def _mend(mend: str) -> Iterator[str]:
    indent = " " * 8
    for number, text in enumerate(mend.splitlines()):
        if text.startswith(_CODE):
            yield f"{indent}{_CODE}{_printable(text.removeprefix(_CODE))}".rstrip()
        else:
            yield from _wrapped(f"{indent}{_MEND if number == 0 else ''}", one_line(text))


def _verdict(report: Report) -> Iterator[str]:
    """What there is to do, where the eye ends up."""
    for level in ("bad", "warn"):
        names = dict.fromkeys(one_line(line.what) for line in report.lines if line.level == level)
        if names:
            yield from _wrapped(f"{level + ':':<8}", ", ".join(names))
    yield f"backend {report.backend or 'none: no model can be mounted here'}"


def _wrapped(first: str, text: str) -> list[str]:
    rest = " " * min(len(first), 8)
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _printable(text: str) -> str:
    """As it is, but for what a terminal acts on."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
