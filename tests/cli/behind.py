"""An operator in memory, to stand behind a real socket: it answers what it was told to, and notes what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from modelvold.errors import Failure
from modelvold.lending.report import Checked, Collected, NodeReport, Progress, Report, VolumeReport

NODE = NodeReport("0.1.0", "lazy", "seen working", "/s", "ok", 1, 3, 2, 1, 1.0, "127.0.0.1:7878", True, 1, 0, "")
VOLUME = VolumeReport("v", "h/m:v1", "sha256:0", "lazy", "lazy", "/p", 10, 5, 5, 0, 2, 1, 1.0, 5.0, (), ("pod a",), "")
STEP = Progress("h/m:v1", 10, 5, 4, 3, 2.5, done=False)
CHECK = Checked("h/m:v1", 10, 5, 0, 0, 2.5, done=False)
RIGHT = replace(CHECK, read=10, done=True)

_Step = TypeVar("_Step")


class InMemory:
    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.failure: Failure | None = None
        self.steps = [STEP, replace(STEP, present=10, durable=10, verified=10, done=True)]
        self.failures: dict[str, Failure] = {}  # by reference, of pulls that fail after their first step
        self.before_mount: list[Progress] = []
        self.checks = [CHECK, RIGHT]
        self.collected = [Collected("h/m:v1", "sha256:0", 2 << 30), Collected("h/\x1bm:v2", "sha256:1", 1 << 30)]
        self.held, self.ended = threading.Event(), threading.Event()
        self.before_pull, self.begun = threading.Event(), threading.Event()

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.failure:
            raise self.failure

    def report(self, reference: str | None) -> Report:
        self._note("report", reference)
        return Report(NODE, (VOLUME,))

    def mount(
        self, reference: str, directory: Path, cancelled: Callable[[], bool]
    ) -> Iterator[Progress | VolumeReport]:
        self._note("mount", reference, directory)
        yield from self.before_mount
        yield VOLUME

    def unmount(self, directory: Path) -> None:
        self._note("unmount", directory)

    def pull(self, reference: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        self._note("pull", reference)
        self.begun.set()
        while self.before_pull.is_set() and not cancelled():
            time.sleep(0.01)
        if reference in self.failures:
            yield from self.steps[:1]
            raise self.failures[reference]
        yield from self._held(self.steps, cancelled)

    def remove(self, reference: str) -> int:
        self._note("remove", reference)
        return 3 << 30

    def pin(self, reference: str) -> None:
        self._note("pin", reference)

    def unpin(self, reference: str) -> None:
        self._note("unpin", reference)

    def collect(self, dry_run: bool) -> Sequence[Collected]:
        self._note("collect", dry_run)
        return self.collected

    def verify(self, reference: str | None, repair: bool, cancelled: Callable[[], bool]) -> Iterator[Checked]:
        self._note("verify", reference, repair)
        yield from self._held(self.checks, cancelled)

    def _held(self, steps: Sequence[_Step], cancelled: Callable[[], bool]) -> Iterator[_Step]:
        """While they are `held`, only whoever asked ends them: before the next is asked for, or while it is waited for."""
        try:
            for step in steps:
                yield step
                while self.held.is_set() and not cancelled():
                    time.sleep(0.01)
        finally:
            self.ended.set()
