"""`verify`: what is durable, read again and compared with what was recorded of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from modelvold.cli import show
from modelvold.cli.asking import address_option, client
from modelvold.cli.progress import told
from modelvold.errors import Mismatch, Unreachable
from modelvold.lending.report import Checked


@click.command(epilog="Example: modelvold verify registry.example/models/llama:8b --repair")
@click.argument("ref", required=False)
@click.option("--repair", is_flag=True, help="Fetch again, now, what is wrong.")
@click.option("--json", "json_", is_flag=True, help="One JSON object on a line for every step, in bytes.")
@address_option
def verify(ref: str | None, repair: bool, json_: bool, address: Path | None) -> None:
    """Read every durable byte again, of the model REF or of all, and compare it with what was recorded.

    What is wrong is taken out of service at once: nobody gets it any more, and it is fetched again when it is read, or
    now with --repair. Exit status 0 says that nothing was wrong, or that all of it was repaired. Ctrl-C ends the check.
    """
    with client(address) as daemon, closing(daemon.verify(ref, repair=repair)) as steps:
        last = told(steps, json_=json_, waiting="asking the daemon")
    what = show.one_line(ref) if ref else "the store"
    if last is None or not last.done:
        raise Unreachable(f"{what}: the daemon ended the check before it was done", "see its log, and check again")
    if last.wrong > last.repaired:
        raise _wrong(what, last, ref, repair)


def _wrong(what: str, last: Checked, ref: str | None, repair: bool) -> Mismatch:
    if repair:
        left = (
            f"{last.wrong - last.repaired} of {show.segments(last.wrong)} with wrong bytes could not be fetched again"
        )
        return Mismatch(f"{what}: {left}", "`modelvold status` says why; they are fetched again when they are read")
    found = f"{show.segments(last.wrong)} did not hold the bytes recorded"
    fetching = f"`modelvold pull {ref or 'REF'}` fetches them now, `modelvold verify --repair` does both"
    return Mismatch(f"{what}: {found}; out of service, and fetched again when read", fetching)
