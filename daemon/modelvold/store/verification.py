"""From durable to verified: the digest of a whole content, taken from its segment files by the ordinary path.

Of a tar the headers are read once more: its toc was made from what the registry sent when the tar was opened, and that was
covered by no digest.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO, Self

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Toc
from modelvold.store.content import Content

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


def toc_of(content: Content) -> Toc:
    """What the headers of a tar say, as they lie in its segment files. Raises Failure for what is no tar, OSError."""
    walker = TarWalker(content.length)
    starts = [segment.extent.start for segment in content.segments]
    with ExitStack() as files:
        opened: dict[int, BinaryIO] = {}
        while (wanted := walker.wanted) is not None:
            piece, at = bytearray(), wanted.start
            while at < wanted.end:
                number = bisect_right(starts, at) - 1
                if number not in opened:
                    files.close()  # headers are read in order: the ones before are of no more use
                    opened = {number: files.enter_context(content.segments[number].path.open("rb"))}
                end = min(wanted.end, content.segments[number].extent.end)
                got = os.pread(opened[number].fileno(), end - at, at - starts[number])
                if len(got) < end - at:
                    raise Malformed(f"segment {content.segments[number].path} is shorter than recorded")
                piece += got
                at = end
            walker.feed(wanted.start, piece)
    return walker.toc()


class Stamp:
    """What was there when a digest began to be taken. It speaks of what is there as long as it `holds`."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._generations = [segment.generation for segment in content.segments]

    @property
    def holds(self) -> bool:
        """To be asked while nothing is recorded and nothing leaves."""
        return all(
            segment.durable and not segment.leaving and segment.generation == generation
            for segment, generation in zip(self._content.segments, self._generations, strict=True)
        )


class Verification:
    """Two threads, since sha256 is the slowest step of a pull and drops the GIL. `judged` gets each content with its digest, and the
    stamp of what that was taken of; `failed` those whose digest could not be taken or judged."""

    _THREADS = 2
    #: Seconds between two tries to write down a judgement on a full disk.
    _PAUSE = 1.0

    def __init__(
        self, judged: Callable[[Content, str, Stamp], None], failed: Callable[[Content, Exception], None]
    ) -> None:
        self._judged = judged
        self._failed = failed
        self._queue: queue.SimpleQueue[Content | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._lock = threading.Lock()  # guards _pending
        self._pending: dict[int, int] = {}  # content → how often it is queued or judged just now
        self._threads = [threading.Thread(target=self._run, name=f"verify-{n}") for n in range(self._THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, content: Content) -> None:
        with self._lock:
            self._pending[content.id] = self._pending.get(content.id, 0) + 1
        self._queue.put(content)

    def is_pending(self, content: Content) -> bool:
        """Whether its digest is being taken, or will be."""
        with self._lock:
            return content.id in self._pending

    def _run(self) -> None:
        while (content := self._queue.get()) is not None:
            try:
                stamp = Stamp(content)
                self._judged(content, digest_of(content), stamp)
            except Exhausted as failure:
                self._failed(content, failure)
                if not self._ending.wait(self._PAUSE):
                    self.submit(content)
            except Exception as error:  # noqa: BLE001 — carried to who judges
                self._failed(content, error)
            with self._lock:
                left = self._pending.pop(content.id) - 1
                if left:
                    self._pending[content.id] = left
