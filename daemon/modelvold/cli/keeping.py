"""`rm`, `pin`, `unpin`, `gc`: what stays in the store and what goes."""

from __future__ import annotations

from pathlib import Path

import click

from modelvold.cli import show
from modelvold.cli.asking import address_option, client
from modelvold.store.amount import size


@click.command(epilog="Example: modelvold rm registry.example/models/llama:8b")
@click.argument("ref")
@address_option
def rm(ref: str, address: Path | None) -> None:
    """Forget the model REF and free what the store holds of it alone.

    Refused while somebody uses it, and while it is pinned.
    """
    with client(address) as daemon:
        click.echo(f"freed {size(daemon.remove(ref))}", err=True)


@click.command(epilog="Example: modelvold pin registry.example/models/llama:8b")
@click.argument("ref")
@address_option
def pin(ref: str, address: Path | None) -> None:
    """Keep the model REF: nothing of it is evicted, and neither `gc` nor `[store] keep` nor `rm` forgets it.

    It must be in the store. What of it is missing comes as before: `pull` fetches all of it.
    """
    with client(address) as daemon:
        daemon.pin(ref)


@click.command(epilog="Example: modelvold unpin registry.example/models/llama:8b")
@click.argument("ref")
@address_option
def unpin(ref: str, address: Path | None) -> None:
    """Undo a pin: the model REF may be evicted and forgotten again."""
    with client(address) as daemon:
        daemon.unpin(ref)


@click.command(epilog="Example: modelvold gc --dry-run")
@click.option("--dry-run", is_flag=True, help="Only say what would be forgotten.")
@address_option
def gc(dry_run: bool, address: Path | None) -> None:
    """Forget every model that nobody uses and nobody pinned, and free what the store holds of it.

    Prints each of them and the bytes it gives back.
    """
    with client(address) as daemon:
        collected = daemon.collect(dry_run=dry_run)
    for one in collected:
        click.echo(show.collected(one))
    freed = size(sum(one.bytes for one in collected))
    nothing = "nothing to forget: every model is in use or pinned"
    click.echo(f"{'would free' if dry_run else 'freed'} {freed}" if collected else nothing, err=True)
