"""`status`: what is here, what is coming, what is wrong."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from modelvold.cli.asking import address_option, as_json, client
from modelvold.cli.overview import overview
from modelvold.lending.report import Report

#: Seconds between two looks: rates are taken over a few of them.
_LOOK = 1.0
_NARROWEST = 80


@click.command(epilog="Example: modelvold status registry.example/models/llama:8b --watch")
@click.argument("ref", required=False)
@click.option("--json", "json_", is_flag=True, help="One JSON object on a line: node, volumes; bytes and seconds.")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@address_option
def status(ref: str | None, json_: bool, watch: bool, address: Path | None) -> None:
    """Show the node and every volume, or the one of REF.

    Of each volume: state, size, how much is present and verified, rate, time left, reads that wait, who uses it,
    last error. What a person has to do, and how, comes last, under ATTENTION.
    """
    with client(address) as daemon:
        if not watch:
            click.echo(_text(daemon.report(ref), json_))
            return
        with contextlib.suppress(KeyboardInterrupt):
            if json_ or not sys.stdout.isatty():
                while True:
                    click.echo(_text(daemon.report(ref), json_))
                    sys.stdout.flush()
                    time.sleep(_LOOK)
            _watch(lambda: daemon.report(ref))


def _watch(look: Callable[[], Report]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text(_text(look(), json_=False, is_cut=True)), refresh=True)
            time.sleep(_LOOK)


def _text(report: Report, json_: bool, *, is_cut: bool = False) -> str:
    """`is_cut`: the screen shows as much of its beginning as it has lines for."""
    if json_:
        return as_json(report)
    columns = shutil.get_terminal_size().columns
    width = max(_NARROWEST, columns) if sys.stdout.isatty() else None
    return overview(report, width, urgent_first=is_cut)
