"""The verbs as an operator types them: real processes, and a real terminal where one is to be seen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name not in {"MODELVOLD_ADDRESS", "DOCKER_CONFIG"}}
    return {**kept, "PYTHONPATH": str(ROOT / "daemon"), "COLUMNS": "100", **more}


def start(*words: object, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "modelvold", *map(str, words)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def run(*words: object, **more: str) -> tuple[int, str, str]:
    with start(*words, **more) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def on_a_terminal(
    *words: object, end: Callable[[], bool] = lambda: False, columns: int = 0, status: int = 0, **more: str
) -> str:
    """What the screen got, without colours; Ctrl-C once `end()`, asked after every write."""
    return re.sub(
        r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_raw_terminal(*words, end=end, columns=columns, status=status, **more)
    )


def on_a_raw_terminal(
    *words: object, end: Callable[[], bool] = lambda: False, columns: int = 0, status: int = 0, **more: str
) -> str:
    """The same, with all that moves the cursor and colours. The terminal is so many `columns` wide, or says nothing of that for 0;
    `status` is what the verb is to end with."""
    ours, theirs = pty.openpty()
    variables = environment(TERM="xterm", LC_ALL="C.UTF-8", **more)
    if columns:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        del variables["COLUMNS"]
    command = [sys.executable, "-m", "modelvold", *map(str, words)]
    with subprocess.Popen(command, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen, ended = b"", False
        try:
            while block := os.read(ours, 4096):
                seen += block
                if not ended and end():
                    ended = True
                    process.send_signal(signal.SIGINT)
        except OSError:  # EIO: the other side is closed
            pass
        finally:
            os.close(ours)
        assert process.wait(60) == status, seen.decode()
    return seen.decode()
