"""`image`: the forms in which containerd can be asked for a model. Works without a daemon."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelvold.rpc import places

if TYPE_CHECKING:
    from modelvold.oci.synthetic import Forms


@click.command(epilog="Example: modelvold image registry.example/models/llama:8b")
@click.argument("ref")
@click.option("--json", "json_", is_flag=True, help="One JSON object on a line: manifest, tag, pinned, synthetic.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="F",
    help=f"Settings [default: {places.DEFAULT_FILE}, if it is there].",
)
def image(ref: str, *, json_: bool, file: Path | None) -> None:
    """Print how containerd, and so a pod, can ask for the model REF.

    Asks its registry, with the node's credentials. Through the façade what containerd sees is an image, with a digest of its own: a model's
    digest cannot be asked for, so a tag pins it that the façade alone knows.
    """
    found = _forms(ref, file)
    if json_:
        click.echo(json.dumps({"manifest": str(found.original), **_named(found)}))
        return
    for name, form in _named(found).items():
        if form:
            click.echo(f"{name:<10} {form}")
    click.echo("`synthetic` is known to a façade that was asked for one of the others before", err=True)


def _named(found: Forms) -> dict[str, str]:
    return {name: form for name, form in asdict(found).items() if name != "original"}


def _forms(ref: str, file: Path | None) -> Forms:
    from modelvold import config
    from modelvold.doctor.asking import manifest_of
    from modelvold.linux.machine import architecture
    from modelvold.oci import modelpack
    from modelvold.oci.reference import Reference
    from modelvold.oci.synthetic import forms
    from modelvold.registry.client import Client
    from modelvold.registry.credentials import Credentials
    from modelvold.registry.hosts import Hosts

    reference = Reference.parse(ref)
    settings = config.load(file, for_user=os.geteuid() != 0)
    listen = str(settings.facade.listen) if settings.facade.listen else None
    hosts = Hosts(settings.registry.hosts_dir)
    with Client(hosts, Credentials(settings.docker_config), facade=listen, proxies=settings.proxies) as client:
        manifest = manifest_of(client, reference, architecture())
    return forms(reference, modelpack.read(manifest, ref))
