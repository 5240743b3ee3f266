"""`serve`: the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from modelvold.rpc import places

_PATH = click.Path(path_type=Path)


@click.command(epilog="Example: modelvold serve --config /etc/modelvold/config.toml")
@click.option(
    "--config", "file", type=_PATH, metavar="F", help=f"Settings [default: {places.DEFAULT_FILE}, if it is there]."
)
@click.option("--root", type=_PATH, metavar="DIR", help="Where models are kept; overrides `[store] root`.")
@click.option("--run", type=_PATH, metavar="DIR", help=f"Where mounts and socket are [default: {places.DEFAULT_RUN}].")
@click.option("--address", type=_PATH, metavar="SOCK", help="The socket [default: modelvold.sock in the run folder].")
@click.option("--user", is_flag=True, help="For one user, in that user's own (XDG) folders and without containerd.")
def serve(file: Path | None, root: Path | None, run: Path | None, address: Path | None, user: bool) -> int:
    """Run the daemon until SIGTERM or SIGINT. Needs root, unless it is for one --user.

    Mounts stay when it ends, and complete models are read without it.
    """
    from modelvold import config
    from modelvold.cli.logs import configure

    settings = config.load(file, root=root, run=run, address=address, for_user=user)
    configure(settings.log)
    from modelvold.serve import run as run_daemon

    status: int = run_daemon(settings)
    return status
