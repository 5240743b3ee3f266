"""Processes that read files and do nothing else: what a bench times is the reading, and the bench's own process never waits for a volume.

    with Readers(8) as readers:
        swept = readers.sweep(shares(pieces, 8), is_mapped=True)
        took = readers.time(piece)

Each has its interpreter up before it is asked. One buffer of 1 MiB takes everything: by `preadv`, or copied out of a mapping of the file.
Nothing is done with the bytes, so a reader is many times faster than a disk. Times are of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = 1 << 20
#: Is told of bytes read.
Note = Callable[[int], None]
#: After so many bytes progress is noted.
_WINDOW = 16 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """[`offset`, `offset + length`) of a file."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Swept:
    """`began` and `ended` in seconds of time.monotonic(), of whoever began first and ended last; `progress` holds (time, bytes read
    since the one before), in the order of time."""

    began: float
    ended: float
    progress: tuple[tuple[float, int], ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.progress)


class Readers:
    def __init__(self, count: int) -> None:
        self._count = count
        self._running: list[subprocess.Popen[str]] = []

    def sweep(self, shares: Sequence[Sequence[Piece]], *, is_mapped: bool, passes: int = 1) -> Swept:
        """Each share by a reader of its own, all at once, `passes` times over. Raises OSError where one of them could not read."""
        asked = list(zip(self._running, shares, strict=False))
        assert len(asked) == len(shares), "more shares than readers"
        for reader, share in asked:
            _ask(reader, {"pieces": [asdict(piece) for piece in share], "mapped": is_mapped, "passes": passes})
        swept = [_answer(reader) for reader, _ in asked]
        progress = sorted(sample for each in swept for sample in each.progress)
        return Swept(min(each.began for each in swept), max(each.ended for each in swept), tuple(progress))

    def time(self, piece: Piece) -> float:
        """Seconds that one reader waits for this piece."""
        swept = self.sweep([[piece]], is_mapped=False)
        return swept.ended - swept.began

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                command = [sys.executable, __file__]
                self._running.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                )
            self.sweep([[]] * self._count, is_mapped=False)  # all are up
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._running:
            reader.kill()
            reader.wait()
            for end in (reader.stdin, reader.stdout):
                if end is not None:
                    end.close()
        self._running.clear()


def pieces_of(paths: Sequence[Path]) -> list[Piece]:
    """All of these files."""
    return [Piece(str(path), 0, path.stat().st_size) for path in paths]


def shares(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """For `count` readers: whole files where there are enough of them, else equal stretches of each."""
    if len(pieces) >= count:
        return [list(pieces[number::count]) for number in range(count)]
    cut: list[list[Piece]] = [[] for _ in range(count)]
    for piece in pieces:
        step = -(-piece.length // count)
        for number in range(count):
            start = min(number * step, piece.length)
            cut[number].append(Piece(piece.path, piece.offset + start, min(step, piece.length - start)))
    return cut


def _ask(reader: subprocess.Popen[str], wanted: dict[str, object]) -> None:
    print(json.dumps(wanted), file=reader.stdin, flush=True)


def _answer(reader: subprocess.Popen[str]) -> Swept:
    assert reader.stdout is not None
    line = reader.stdout.readline()
    if not line:
        raise OSError(f"a reader died: status {reader.wait()}")  # a mapped page that cannot be had is SIGBUS
    answer = json.loads(line)
    if "error" in answer:
        raise OSError(answer["error"])
    return Swept(answer["began"], answer["ended"], tuple((at, size) for at, size in answer["progress"]))


# -- the reader's own process


def _main() -> None:
    buffer = memoryview(bytearray(_PIECE))
    for line in sys.stdin:
        wanted = json.loads(line)
        pieces = [Piece(**piece) for piece in wanted["pieces"]]
        try:
            answer = _sweep(pieces, buffer, is_mapped=wanted["mapped"], passes=wanted["passes"])
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def _sweep(pieces: list[Piece], buffer: memoryview, *, is_mapped: bool, passes: int) -> dict[str, object]:
    progress = _Progress()
    take = _copy if is_mapped else _read
    with ExitStack() as held:
        began = time.monotonic()
        files = {
            path: held.enter_context(Path(path).open("rb", buffering=0)).fileno()
            for path in dict.fromkeys(piece.path for piece in pieces)
        }
        for piece in pieces * passes:
            if piece.length:
                take(files[piece.path], piece, buffer, progress.note)
        ended = time.monotonic()
    return {"began": began, "ended": ended, "progress": progress.samples()}


def _read(file: int, piece: Piece, buffer: memoryview, note: Note) -> None:
    at, end = piece.offset, piece.offset + piece.length
    while at < end:
        got = os.preadv(file, [buffer[: min(_PIECE, end - at)]], at)
        if not got:
            raise OSError(f"{piece.path}: ends at {at}, not at {end}")
        at += got
        note(got)


def _copy(file: int, piece: Piece, buffer: memoryview, note: Note) -> None:
    """The piece alone is mapped, anew each time: every page is faulted in."""
    before = piece.offset % mmap.ALLOCATIONGRANULARITY
    end = before + piece.length
    with mmap.mmap(file, end, prot=mmap.PROT_READ, offset=piece.offset - before) as mapped, memoryview(mapped) as view:
        for at in range(before, end, _PIECE):
            count = min(_PIECE, end - at)
            with view[at : at + count] as window:
                buffer[:count] = window
            note(count)


class _Progress:
    """(time, bytes since the time before), every so many bytes and at the end."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._pending = 0

    def note(self, count: int) -> None:
        self._pending += count
        if self._pending >= _WINDOW:
            self.samples()

    def samples(self) -> list[tuple[float, int]]:
        if self._pending:
            self._samples.append((time.monotonic(), self._pending))
            self._pending = 0
        return self._samples


if __name__ == "__main__":
    _main()
