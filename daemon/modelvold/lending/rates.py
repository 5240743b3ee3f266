"""How fast contents grow: a sample a second of those that are not complete, kept for a few seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from modelvold.store.content import Content

_PERIOD = 1.0
_KEPT = 6


class Rates:
    def __init__(self, contents: Callable[[], Sequence[Content]]) -> None:
        self._contents = contents
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._lock = threading.Lock()  # guards _samples
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rates")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def of(self, contents: Sequence[Content]) -> float:
        """Bytes a second that came for these over the last seconds."""
        with self._lock:
            spans = [(s[0], s[-1]) for c in contents if (s := self._samples.get(c.id)) and len(s) > 1]
        return sum((last[1] - first[1]) / (last[0] - first[0]) for first, last in spans if last[0] > first[0])

    def _run(self) -> None:
        while not self._ending.wait(_PERIOD):
            now = time.monotonic()
            growing = {content.id: content.present for content in self._contents() if not content.is_durable}
            with self._lock:
                self._samples = {number: self._samples.get(number, deque(maxlen=_KEPT)) for number in growing}
                for number, present in growing.items():
                    self._samples[number].append((now, present))
