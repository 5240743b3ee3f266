"""The verbs an operator types. Most ask the daemon and print; none decides.

Rules: what was asked for goes to standard output, everything else to standard error. A failure is one line,
`modelvold: …`, and its remedy a second. Exit status: 0 done, 1 failed, 2 usage. A verb imports what it needs when
it runs, so that help is quick.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module

import click

import modelvold
from modelvold.cli.show import said
from modelvold.errors import Failure

DONE, FAILED, USAGE = 0, 1, 2

#: In the order of help, each with the module that has it.
_VERBS = {
    "serve": "serve",
    "status": "status",
    "mount": "volumes",
    "umount": "volumes",
    "pull": "pull",
    "rm": "keeping",
    "pin": "keeping",
    "unpin": "keeping",
    "gc": "keeping",
    "verify": "verify",
    "pack": "pack",
    "image": "image",
    "doctor": "doctor",
    "fuse": "fuse",
}


class _Verbs(click.Group):
    """Imports a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        verb: click.Command = getattr(import_module(f"modelvold.cli.{_VERBS[cmd_name]}"), cmd_name)
        return verb


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(modelvold.__version__, prog_name="modelvold")
def verbs() -> None:
    """Mounts AI models from OCI registries lazily, as containers and Kubernetes image volumes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits with its status."""
    status = _run(arguments)
    gc.freeze()  # the interpreter's end would look through everything once more: a seventh of what a short verb takes
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    status = FAILED
    try:
        found = verbs.main(args=arguments, prog_name="modelvold", standalone_mode=False)
        sys.stdout.flush()
        status = found if isinstance(found, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "modelvold"
        _tell(error.format_message(), f"`{path} --help` shows an example")
        status = USAGE
    except click.ClickException as error:
        _tell(error.format_message(), "")
    except Failure as failure:
        _tell(failure.message, failure.remedy)
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted", "")
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone; Python would say so once more at the end
    return status


def _tell(message: str, remedy: str) -> None:
    click.echo(said(message, remedy), err=True)
