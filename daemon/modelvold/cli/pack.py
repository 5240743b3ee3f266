"""`pack`: a folder → a ModelPack artifact in a registry. Works without a daemon."""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelvold.cli.show import one_line
from modelvold.rpc import places
from modelvold.store.amount import size

if TYPE_CHECKING:
    from rich.progress import Progress

    from modelvold.pack.artifact import Artifact
    from modelvold.pack.folder import OnStep, Step

_LATER = "--push is needed: writing a layout to disk (--output) comes with a later version"


@click.command(epilog="Example: modelvold pack ./llama-8b -t registry.example/models/llama:8b --push")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-t", "--tag", "ref", required=True, metavar="REF", help="Where it goes: host[:port]/repository:tag.")
@click.option("--push", is_flag=True, help="Upload it to its registry, with the credentials of `docker login`.")
@click.option("--name", help="The model's name in the artifact [default: the repository's last part].")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="F",
    help=f"Settings, of which `[registry]` is used [default: {places.DEFAULT_FILE}, or a user's own, if it is there].",
)
def pack(folder: Path, ref: str, push: bool, name: str | None, file: Path | None) -> None:
    """Pack the files of DIR as a ModelPack artifact, each one a raw layer.

    Hidden files and compiled Python are left out, and named. Prints the reference by digest, which pins what was
    packed.
    """
    if not push:
        raise click.UsageError(_LATER)
    from modelvold import config
    from modelvold.oci.reference import Reference
    from modelvold.pack.folder import pack as pack_folder
    from modelvold.pack.push import push as push_packed
    from modelvold.registry.credentials import Credentials
    from modelvold.registry.hosts import Hosts

    reference = Reference.parse(ref)
    settings = config.load(file, for_user=os.geteuid() != 0)
    with ExitStack() as stack:
        packed = pack_folder(folder, name or reference.repository.path.rpartition("/")[2], _hashing(stack))
        stack.close()
        for skipped in packed.skipped:
            click.echo(f"left out {one_line(skipped.path)}: {skipped.reason}", err=True)
        artifact = packed.artifact
        click.echo(f"packed {len(artifact.entries)} files, {size(artifact.size)}", err=True)
        listening = settings.facade.listen
        digest = push_packed(
            packed,
            reference,
            Hosts(settings.registry.hosts_dir),
            Credentials(settings.docker_config),
            on_step=_pushing(stack, artifact),
            facade=str(listening) if listening else None,
        )
    click.echo(str(reference.at(digest)))


def _hashing(stack: ExitStack) -> OnStep:
    """On a terminal, a line that counts. Elsewhere nothing: hashing is as fast as the disk."""
    if not sys.stderr.isatty():
        return lambda _: None
    bar = stack.enter_context(_bar())
    task = bar.add_task("hashed", total=None)
    return lambda step: bar.advance(task, step.size)


def _pushing(stack: ExitStack, artifact: Artifact) -> OnStep:
    """On a terminal a bar, elsewhere a line for every file when it is there."""
    blobs = {entry.digest: entry for entry in artifact.entries}
    if not sys.stderr.isatty():
        return _Lines({entry.path: entry.size for entry in artifact.entries})
    bar = stack.enter_context(_bar())
    task = bar.add_task("pushed", total=sum(entry.size for entry in blobs.values()))
    return lambda step: bar.advance(task, step.size)


class _Lines:
    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes
        self._done: Counter[str] = Counter()

    def __call__(self, step: Step) -> None:
        self._done[step.path] += step.size
        if self._done[step.path] == self._sizes[step.path]:
            click.echo(f"{step.doing.value} {one_line(step.path)} {size(self._sizes[step.path])}", err=True)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    return Bar(*columns, console=Console(stderr=True))
