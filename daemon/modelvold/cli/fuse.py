"""`fuse`: the process that serves volumes through FUSE. The daemon starts it; nobody else needs to."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(hidden=True, epilog="Example: modelvold fuse --run /run/modelvold")
@click.option("--run", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The daemon's run folder.")
@click.option("--label", default="", metavar="CONTEXT", help="The SELinux context of all files.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", default="text", type=click.Choice(["text", "json"]))
def fuse(run: Path, label: str, log_level: str, log_format: str) -> int:
    """Serve volumes through FUSE, at DIR/fuse, until nothing of that is mounted any more.

    The daemon starts this, for the backend "fuse", and it outlives the daemon: what has come is read on.
    """
    import msgspec

    from modelvold.cli.logs import configure
    from modelvold.config import Log
    from modelvold.errors import Failing
    from modelvold.mount.fuse import process
    from modelvold.mount.fuse.line import Place

    configure(msgspec.convert({"level": log_level, "format": log_format}, Log))
    try:
        return process.run(Place(run, label))
    except OSError as error:
        raise Failing(f"fuse mount {run / 'fuse'}: {error.strerror or error}", "see `modelvold doctor`") from error
