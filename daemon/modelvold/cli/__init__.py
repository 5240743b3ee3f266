"""The verbs an operator types. Most ask the daemon and print; none decides.

Rules: what was asked for goes to standard output, everything else to standard error. A failure is one line,
`modelvold: …`, and its remedy a second. Exit status: 0 done, 1 failed, 2 usage. A verb imports what it needs when
it runs, so that help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import modelvold
from modelvold.cli.doctor import doctor
from modelvold.cli.keeping import gc, pin, rm, unpin
from modelvold.cli.pack import pack
from modelvold.cli.serve import serve
from modelvold.cli.show import one_line
from modelvold.cli.status import status
from modelvold.cli.verify import verify
from modelvold.cli.volumes import mount, pull, umount
from modelvold.errors import Failure

DONE, FAILED, USAGE = 0, 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(modelvold.__version__, prog_name="modelvold")
def verbs() -> None:
    """Mounts AI models from OCI registries lazily, as containers and Kubernetes image volumes."""


for verb in (serve, status, mount, umount, pull, rm, pin, unpin, gc, verify, pack, doctor):
    verbs.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits with its status."""
    sys.exit(_run(arguments))


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
    click.echo(f"modelvold: {one_line(message)}", err=True)
    if remedy:
        click.echo(one_line(remedy), err=True)
