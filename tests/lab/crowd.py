"""A crowd of programs that read the same files at once, each what it is told, and end: the ones that wait together.

    with Crowd(paths, [pieces, pieces, …]) as crowd:
        for ended in crowd.ends(patience): …

Each is a process of its own, forked by one that tells of their ends as they come, so that a hundred cost no more than a few.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from tests.lab.reader import Piece

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class End:
    """Of the program of this `number`: by a `signal`, an `errno`, or with the XXH3 `digests` of all its pieces. `longest`: seconds that a
    piece took, at most."""

    number: int
    signal: int = 0
    errno: int = 0
    digests: tuple[str, ...] = ()
    longest: float = 0.0


class Crowd:
    def __init__(self, paths: Sequence[Path], pieces: Sequence[Sequence[Piece]]) -> None:
        self.pids: list[int] = []
        self._paths = [str(path) for path in paths]
        self._pieces = pieces
        self._left = len(pieces)
        self._running: subprocess.Popen[bytes] | None = None

    def ends(self, patience: float) -> Iterator[End]:
        """As they come, until all have ended. Raises AssertionError where none has for so many seconds."""
        while self._left:
            yield self.end(patience)

    def end(self, patience: float) -> End:
        """The next one's."""
        assert select.select([self._said], [], [], patience)[0], f"{self._left} still read after {patience} s"
        said = json.loads(self._line())
        self._left -= 1
        return End(said["number"], said["signal"], said["errno"], tuple(said["digests"]), said["longest"])

    @property
    def _said(self) -> int:
        assert self._running is not None
        assert self._running.stdout is not None
        return self._running.stdout.fileno()

    def _line(self) -> bytes:
        """Unbuffered: what is not read yet is seen by select."""
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = os.read(self._said, 1)
            assert byte, "the crowd has died"
            line += byte
        return bytes(line)

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        pipe = subprocess.PIPE
        self._running = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.crowd"], stdin=pipe, stdout=pipe, env=environment, start_new_session=True
        )
        assert self._running.stdin is not None
        told = {"paths": self._paths, "pieces": [[asdict(piece) for piece in pieces] for pieces in self._pieces]}
        self._running.stdin.write(json.dumps(told).encode() + b"\n")
        self._running.stdin.flush()
        self.pids = json.loads(self._line())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        with suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.communicate()


def _main() -> None:
    told = json.loads(sys.stdin.readline())
    pipes: dict[int, tuple[int, int]] = {}  # number and the end of its pipe, by pid
    for number, pieces in enumerate(told["pieces"]):
        come, go = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(go, json.dumps(_read(told["paths"], [Piece(**piece) for piece in pieces])).encode())
            os._exit(0)
        os.close(go)
        pipes[pid] = (number, come)
    print(json.dumps(list(pipes)), flush=True)
    while pipes:
        pid, status = os.wait()
        number, come = pipes.pop(pid)
        said = json.loads(os.read(come, 1 << 16) or b'{"errno": 0, "digests": [], "longest": 0}')
        os.close(come)
        ended = {"number": number, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}
        print(json.dumps({**ended, **said}), flush=True)


def _read(paths: Sequence[str], pieces: Sequence[Piece]) -> dict[str, object]:
    digests, longest = [], 0.0
    try:
        files = [os.open(path, os.O_RDONLY) for path in paths]
        maps = [mmap.mmap(file, 0, prot=mmap.PROT_READ) for file in files]
        for piece in pieces:
            began = time.monotonic()
            if piece.is_mapped:
                got = maps[piece.file][piece.offset : piece.offset + piece.length]
            else:
                got = os.pread(files[piece.file], piece.length, piece.offset)
            longest = max(longest, time.monotonic() - began)
            digests.append(xxhash.xxh3_64_hexdigest(got))
    except OSError as error:
        return {"errno": error.errno, "digests": [], "longest": longest}
    return {"errno": 0, "digests": digests, "longest": round(longest, 3)}


if __name__ == "__main__":
    _main()
