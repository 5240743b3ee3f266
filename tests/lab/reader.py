"""A program that holds files open and mapped, and reads of them what it is told: the one whose bytes matter.

    with Reader(paths) as reader:
        answers = reader.read([Piece(0, offset, length), Piece(1, offset, length, is_mapped=True)])

It is a process of its own, so that a read that waits stops nobody else, and it opens every file once: what it reads
after a daemon's death it reads on the descriptors and the mappings it had before. A mapped read is made by a child
forked for it, since what cannot be had there is SIGBUS; the parent's mapping lives on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Piece:
    """[`offset`, `offset + length`) of the file of this number."""

    file: int
    offset: int
    length: int
    is_mapped: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The digest of what was read, of exactly `length` bytes; or `errno` (EIO for SIGBUS too)."""

    sha256: str
    errno: int
    length: int


class Reader:
    """`command` runs this file, as somebody else."""

    def __init__(self, paths: Sequence[Path], command: Sequence[str] = (sys.executable, __file__)) -> None:
        self._paths = [str(path) for path in paths]
        self._command = command
        self._running: subprocess.Popen[str] | None = None

    def ask(self, pieces: Iterable[Piece]) -> None:
        """Begins; `answers()` waits for the end."""
        print(json.dumps([asdict(piece) for piece in pieces]), file=self._process.stdin, flush=True)

    def answers(self, patience: float | None = None) -> list[Answer]:
        """Raises AssertionError where it has not read all of it `patience` seconds from now."""
        assert self._process.stdout is not None
        assert self.has_answered(patience), f"it reads still after {patience} s"
        line = self._process.stdout.readline()
        assert line, f"the reader died: {self._process.wait()}"
        return [Answer(**answer) for answer in json.loads(line)]

    def read(self, pieces: Iterable[Piece]) -> list[Answer]:
        self.ask(pieces)
        return self.answers()

    def has_answered(self, patience: float | None = 0.0) -> bool:
        """Whether it has read all that it was asked, at most `patience` seconds from now."""
        return bool(select.select([self._process.stdout], [], [], patience)[0])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _process(self) -> subprocess.Popen[str]:
        assert self._running is not None, "outside its with"
        return self._running

    def __enter__(self) -> Self:
        """Raises OSError where a file cannot be opened."""
        self._running = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            print(json.dumps(self._paths), file=self._process.stdin, flush=True)
            # An answer to nothing says that every file is open and mapped.
            for answer in self.read([]):
                raise OSError(answer.errno, os.strerror(answer.errno))  # noqa: TRY301
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()


def random_pieces(order: random.Random, sizes: Sequence[int], count: int) -> list[Piece]:
    """All of every file, in pieces and in random order, preceded by `count` odd pieces each; half of them mapped."""
    odd = [
        Piece(number, order.randrange(size), order.choice((1, 511, 4096, 200_001, (1 << 20) + 1)))
        for number, size in enumerate(sizes)
        for _ in range(count if size else 0)
    ]
    step = 5 << 20
    whole = [Piece(number, at, step) for number, size in enumerate(sizes) for at in range(0, max(size, 1), step)]
    order.shuffle(odd)
    order.shuffle(whole)
    pieces = [*odd, *whole]
    return [
        Piece(
            piece.file,
            piece.offset,
            max(0, min(piece.length, sizes[piece.file] - piece.offset)),
            is_mapped=sizes[piece.file] > 0 and order.random() < 0.5,
        )
        for piece in pieces
    ]


def check(
    pieces: Sequence[Piece],
    answers: Sequence[Answer],
    source: Callable[[int, int, int], bytes],
    errors: Collection[int] = (errno.EIO,),
) -> tuple[list[Piece], list[Piece]]:
    """Raises AssertionError for bytes that are not `source(file, offset, length)`, and for an error that is none of `errors`.

    What was read right, and what was denied by one of those.
    """
    right, denied = [], []
    for piece, answer in zip(pieces, answers, strict=True):
        if answer.errno:
            assert answer.errno in errors, (piece, os.strerror(answer.errno))
            denied.append(piece)
            continue
        assert answer.length == piece.length, piece
        expected = hashlib.sha256(source(piece.file, piece.offset, piece.length)).hexdigest()
        assert answer.sha256 == expected, f"wrong bytes: {piece}"
        right.append(piece)
    return right, denied


def _main() -> None:
    with ExitStack() as held:
        files, maps = [], []
        try:
            for path in json.loads(sys.stdin.readline()):
                files.append(held.enter_context(Path(path).open("rb", buffering=0)))
                size = os.fstat(files[-1].fileno()).st_size
                maps.append(mmap.mmap(files[-1].fileno(), 0, prot=mmap.PROT_READ) if size else None)
        except OSError as error:
            print(json.dumps([asdict(Answer("", error.errno or errno.EIO, 0))]), flush=True)
            os._exit(1)  # to close the others may be an error too
        for line in sys.stdin:
            answers = []
            for piece in (Piece(**wanted) for wanted in json.loads(line)):
                mapped = maps[piece.file]
                answers.append(
                    _mapped(mapped, piece) if piece.is_mapped and mapped else _read(files[piece.file], piece)
                )
            print(json.dumps([asdict(answer) for answer in answers]), flush=True)


def _read(file: FileIO, piece: Piece) -> Answer:
    content = bytearray()
    try:
        while len(content) < piece.length:
            got = os.pread(file.fileno(), piece.length - len(content), piece.offset + len(content))
            if not got:
                break
            content += got
    except OSError as error:
        return Answer("", error.errno or errno.EIO, len(content))
    return Answer(hashlib.sha256(content).hexdigest(), 0, len(content))


def _mapped(mapped: mmap.mmap, piece: Piece) -> Answer:
    come, go = os.pipe()
    child = os.fork()
    if not child:
        content = mapped[piece.offset : piece.offset + piece.length]
        os.write(go, f"{hashlib.sha256(content).hexdigest()} {len(content)}".encode())
        os._exit(0)
    os.close(go)
    _, status = os.waitpid(child, 0)
    said = os.read(come, 200).decode().split()
    os.close(come)
    if os.WIFSIGNALED(status):
        return Answer("", errno.EIO if os.WTERMSIG(status) == signal.SIGBUS else errno.ECHILD, 0)
    return Answer(said[0], 0, int(said[1]))


if __name__ == "__main__":
    _main()
