"""How long a List of all takes until its answer has arrived: asked by a process of its own, which does not look at what it gets.

    python -m tests.lab.lister SOCKET COUNT

prints what arrived, messages and bytes; then the seconds of each call, a line each, and behind them those of a health check right after
it, which asks nobody.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

_ROOT = Path(__file__).resolve().parents[2]
_LIST = "/containerd.services.snapshots.v1.Snapshots/List"
_CHECK = "/grpc.health.v1.Health/Check"
_LARGEST = 16 << 20  # of a message: containerd's own bound
_TIMEOUT = 30.0
_BEFORE = 20  # calls that are not counted: its connection and its code are new


@dataclass(frozen=True, slots=True)
class Listed:
    """`size` is that of one answer, in bytes; `seconds` of each call, and of the health check behind it."""

    messages: int
    size: int
    seconds: Sequence[tuple[float, float]]


def lists(socket: Path, count: int) -> Listed:
    """Starts it, and waits for its end."""
    command = [sys.executable, "-m", __name__, str(socket), str(count)]
    ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    first, *lines = (line.split() for line in ran.stdout.splitlines())
    return Listed(int(first[0]), int(first[1]), [(float(took), float(check)) for took, check in lines])


def _main() -> None:
    _, socket, count = sys.argv
    with grpc.insecure_channel(f"unix:{socket}", [("grpc.max_receive_message_length", _LARGEST)]) as channel:
        ask, check = channel.unary_stream(_LIST), channel.unary_unary(_CHECK)  # bytes in, bytes out
        for _ in range(_BEFORE):
            answer = list(ask(b"", timeout=_TIMEOUT))
        print(len(answer), sum(map(len, answer)))
        gc.disable()
        for _ in range(int(count)):
            began = time.perf_counter()
            for _message in ask(b"", timeout=_TIMEOUT):
                pass
            ended = time.perf_counter()
            check(b"", timeout=_TIMEOUT)
            print(ended - began, time.perf_counter() - ended)


if __name__ == "__main__":
    _main()
