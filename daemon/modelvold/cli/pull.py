"""`pull`: models made complete, one after the other."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelvold.cli.asking import address_option, client
from modelvold.cli.bars import Pulled
from modelvold.cli.tellers import Events, Lines, Screen, Teller
from modelvold.errors import Failure, NotYet, Unreachable

if TYPE_CHECKING:
    from modelvold.rpc.control import ControlClient


@click.command(epilog="Example: modelvold pull registry.example/models/llama:8b")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--json", "json_", is_flag=True, help="Events on standard output, one JSON object on a line.")
@address_option
def pull(refs: tuple[str, ...], json_: bool, address: Path | None) -> int:
    """Make every byte of the models REF present, durable and verified.

    They come in the order named, one after the other: each has all of the link, and the first can be used soonest. One that
    fails does not keep the others from coming. Exit status 0 says that every byte of every model is verified.

    On a terminal a bar shows how far each is; elsewhere there is one line for each at its end. Ctrl-C ends the wait: the daemon goes
    on with what it has begun.

    \b
    With --json: {"event": "progress", "reference", "size", "present", "durable",
    "verified", "rate", "eta"} at most twice a second, in bytes, bytes a second and
    seconds (negative: unknown); last of each model {"event": "done", "reference",
    "size", "fetched", "seconds", "rate"} or {"event": "failed", "reference", "kind",
    "cause", "next"}.
    """
    references = list(dict.fromkeys(refs))
    with client(address) as daemon, _teller(references, json_=json_) as teller:
        done = [_is_pulled(daemon, reference, teller) for reference in references]
    return 0 if all(done) else 1


def _teller(references: list[str], *, json_: bool) -> Lines:
    if json_:
        return Events()
    return Screen(references) if sys.stderr.isatty() else Lines()


def _is_pulled(daemon: ControlClient, reference: str, teller: Teller) -> bool:
    try:
        teller.on_pulled(_pulled(daemon, reference, teller))
    except Failure as failure:
        teller.on_failed(reference, failure)
        return False
    return True


def _pulled(daemon: ControlClient, reference: str, teller: Teller) -> Pulled:
    began, first, last = time.monotonic(), None, None
    teller.on_begun(reference)
    try:
        with closing(daemon.pull(reference)) as steps:
            for last in steps:
                first = first or last
                teller.on_step(reference, last)
    except KeyboardInterrupt:
        teller.on_failed(reference, interrupted(reference, is_begun=first is not None))
        raise click.exceptions.Exit(1) from None
    if first is None or last is None or not last.done:
        raise Unreachable(f"{reference}: the daemon ended the pull before it was done", "see its log, and pull again")
    fetched = min(max(0, last.present - first.present), last.size)
    return Pulled(reference, last.size, fetched, time.monotonic() - began)


def interrupted(reference: str, *, is_begun: bool) -> NotYet:
    going_on = f"the daemon goes on with {reference}: `modelvold status` shows how far, `modelvold rm` ends it"
    return NotYet("interrupted", going_on if is_begun else f"nothing of {reference} was begun")
