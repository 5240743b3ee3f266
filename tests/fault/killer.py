"""Stops the world at a named point: a daemon that ends, or whose disk is cut, at the n-th time it comes by.

    python -m tests.fault.killer BOARD [--cut IMAGE] -m modelvold serve …

runs the rest of its words as Python would, and hears the audit events of `modelvold.points`. What it shall do, and how often it came
by each point, stands on a `Board`: a page of memory shared by file with the test, which outlives either. SIGKILL comes from within the
point itself, so that nothing behind it was done by the thread that came by; the others stop where they are.
"""

from __future__ import annotations

import mmap
import os
import runpy
import signal
import struct
import sys
import threading
import traceback
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from modelvold.points import EVENT, Point

from tests.lab.disks import reflink

if TYPE_CHECKING:
    from tests.lab.daemon import Python

_POINTS = tuple(Point)
_ROOT = Path(__file__).resolve().parents[2]


class Act(IntEnum):
    NOTHING = 0
    KILL = 1  # the process that comes by
    CUT = 2  # the power of the disk whose image was named; the process goes on


class _At(IntEnum):
    """What lies where on the board, in words of eight bytes; behind them one for each point, in the order of `Point`."""

    POINT = 0
    LEFT = 1
    ACT = 2
    DONE = 3
    HITS = 4


class Board:
    """Orders to the process that comes by the points, and its counts. One order at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = 8 * (_At.HITS + len(_POINTS))
        with path.open("a+b") as file:
            if path.stat().st_size < size:
                file.truncate(size)
            self._page = mmap.mmap(file.fileno(), size)
        self._lock = threading.Lock()  # guards the counts, within one process

    def order(self, act: Act, point: Point, hit: int = 1) -> None:
        """At the `hit`-th coming by from now on."""
        self._set(_At.ACT, Act.NOTHING)
        self._set(_At.DONE, 0)
        self._set(_At.POINT, _POINTS.index(point))
        self._set(_At.LEFT, hit)
        self._set(_At.ACT, act)

    def cancel(self) -> None:
        """The last order, carried out or not, is no more."""
        self._set(_At.ACT, Act.NOTHING)
        self._set(_At.DONE, 0)

    @property
    def is_done(self) -> bool:
        """Whether the last order was carried out."""
        return bool(self._get(_At.DONE))

    def hits(self) -> dict[Point, int]:
        """How often each point was come by, since the board was made."""
        return {point: self._get(_At.HITS + number) for number, point in enumerate(_POINTS)}

    def on_point(self, point: Point) -> Act:
        """It has been come by; what is to be done now."""
        number = _POINTS.index(point)
        with self._lock:
            self._set(_At.HITS + number, self._get(_At.HITS + number) + 1)
            act = Act(self._get(_At.ACT))
            if act is Act.NOTHING or self._get(_At.POINT) != number:
                return Act.NOTHING
            left = self._get(_At.LEFT) - 1
            self._set(_At.LEFT, left)
            if left:
                return Act.NOTHING
            self._set(_At.ACT, Act.NOTHING)
            if act is Act.KILL:
                self._set(_At.DONE, 1)
            return act

    def done(self) -> None:
        self._set(_At.DONE, 1)

    def python(self, image: Path | None = None) -> Python:
        """Runs a `tests.lab.daemon.Daemon` that obeys this board; a CUT is one of the disk at `image`."""
        from tests.lab.daemon import Python  # not in the daemon, whose start it would slow down

        cut = ("--cut", str(image)) if image else ()
        environment = {**Python().environment}
        environment["PYTHONPATH"] = f"{_ROOT}:{environment['PYTHONPATH']}"
        return Python((sys.executable, "-m", "tests.fault.killer", str(self._path), *cut), environment)

    def close(self) -> None:
        self._page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, word: int) -> int:
        found: int = struct.unpack_from("<Q", self._page, 8 * word)[0]
        return found

    def _set(self, word: int, value: int) -> None:
        struct.pack_into("<Q", self._page, 8 * word, value)


def cut_of(image: Path) -> Path:
    """Where a CUT leaves what it has copied."""
    return image.with_name("point.cut")


def _listen(board: Board, image: Path | None) -> None:
    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event != EVENT:
            return
        act = board.on_point(Point(str(arguments[0])))
        if act is Act.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif act is Act.CUT and image is not None:
            try:
                reflink(image, cut_of(image))
            except OSError:
                traceback.print_exc()  # to the daemon's log: the order is not done, and the test says so
            else:
                board.done()

    sys.addaudithook(hear)


def _main() -> None:
    _, board, *words = sys.argv
    image = None
    if words[0] == "--cut":
        _, named, *words = words
        image = Path(named)
    _listen(Board(Path(board)), image)
    dash_m, module, *arguments = words
    assert dash_m == "-m", words
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
