"""From durable to verified: the digest of a whole content, taken from its segment files by the ordinary path."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Self

from modelvold.store.content import Content

log = logging.getLogger(__name__)

_BUFFER = 1 << 20


def digest_of(content: Content) -> str:
    """sha256 of the content's bytes, in hexadecimal, padding left out. Raises OSError; a short segment gives another digest."""
    state = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    for segment in content.segments:
        left = segment.length
        with segment.path.open("rb", buffering=0) as file:
            while left and (got := file.readinto(buffer[: min(left, _BUFFER)])):
                state.update(buffer[:got])
                left -= got
    return state.hexdigest()


class Verification:
    """Two threads, since sha256 is the slowest step of a pull and drops the GIL. `judged` gets each content with its digest."""

    _THREADS = 2

    def __init__(self, judged: Callable[[Content, str], None]) -> None:
        self._judged = judged
        self._queue: queue.SimpleQueue[Content | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"verify-{n}") for n in range(self._THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, content: Content) -> None:
        self._queue.put(content)

    def _run(self) -> None:
        while (content := self._queue.get()) is not None:
            try:
                self._judged(content, digest_of(content))
            except Exception:
                log.exception("verify content=%s failed", content.digest)
