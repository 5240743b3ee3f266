"""`mount`, `umount`: one model, without containerd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import click

from modelvold.cli import show
from modelvold.cli.asking import address_option, client
from modelvold.cli.progress import told
from modelvold.errors import Unreachable
from modelvold.lending.report import Progress, VolumeReport
from modelvold.store.amount import size

_DIRECTORY = click.Path(path_type=Path)


@click.command(epilog="Example: modelvold mount registry.example/models/llama:8b /mnt/llama")
@click.argument("ref")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@address_option
def mount(ref: str, directory: Path, address: Path | None) -> None:
    """Show the model REF in DIR, read-only.

    Returns when the tree is there. With the backends `lazy` and `fuse` bytes come when they are read, and ahead of that; with
    others all of them are fetched first: Ctrl-C ends the wait, and the fetching goes on.
    """
    with client(address) as daemon, closing(daemon.mount(ref, directory.absolute())) as steps:
        volume = _volume(steps)
    if volume is None:
        raise Unreachable(f"{ref}: the daemon ended the mount before it was done", "see its log, and mount again")
    click.echo(f"{show.one_line(volume.reference)}: {size(volume.size)} at {directory} ({volume.backend})", err=True)


def _volume(steps: Iterator[Progress | VolumeReport]) -> VolumeReport | None:
    """What is mounted at last; how far it is meanwhile goes where a pull's progress goes."""
    volumes: list[VolumeReport] = []

    def waiting() -> Iterator[Progress]:
        for step in steps:
            if isinstance(step, Progress):
                yield step
            else:
                volumes.append(step)

    rest = waiting()
    for first in rest:  # nothing is shown where nobody has to wait
        told(chain([first], rest))
    return volumes[0] if volumes else None


@click.command(epilog="Example: modelvold umount /mnt/llama")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@address_option
def umount(directory: Path, address: Path | None) -> None:
    """Undo a mount at DIR. What was fetched stays in the store; `rm` frees it."""
    with client(address) as daemon:
        daemon.unmount(directory.absolute())
