"""A real model through a real registry, read as it is mounted. `python -m tests.demo`, as root or as anybody.

Root on a kernel with pre-content events is shown a pod that reads it through containerd (`pod`); everybody else a folder
(`folder`). Everything started lives in one temporary folder with sockets of its own and is gone afterwards, also when a
step fails or Ctrl-C is pressed. Exit status: 0 shown, 1 something was not as promised, 3 this machine cannot show it.
"""

from __future__ import annotations

import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.demo import folder as folder_walk
from tests.demo import pod as pod_walk
from tests.demo.stage import NotAsPromised
from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.program import Failed


def main() -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = needs.lazy_folder()
    try:
        with settled(folder):
            _play(console, folder)
    except debian.Unavailable as reason:
        console.print(f"The demo cannot get what it needs: {reason}", soft_wrap=True)
        return 3
    except (NotAsPromised, Failed, AssertionError) as reason:
        console.print("not as promised:", style="bold", end=" ")
        console.print(str(reason), soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything was stopped and removed")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print("Everything was stopped and removed.")
    return 0


def _play(console: Console, folder: Path) -> None:
    console.print(f"everything lives in {folder}")
    with ExitStack() as stack:
        try:
            if missing := needs.missing_for_lazy(folder):
                folder_walk.play(console, folder, stack, missing)
            else:
                pod_walk.play(console, folder, stack)
        except BaseException:
            _show_log(console, folder / "daemon/daemon.log")
            raise
        finally:
            # From here on things are taken down, which a second Ctrl-C must not cut short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _show_log(console: Console, log: Path) -> None:
    if log.exists():
        console.print("the end of the daemon's log:")
        for line in log.read_text(errors="replace").splitlines()[-15:]:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends the demo as Ctrl-C does: everything is taken down."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
