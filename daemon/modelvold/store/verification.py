"""From present to verified: every unverified content has a running digest (`store.running`), which goes on in the threads of the
transfers, over the bytes as they come, and in threads of its own, over those that came out of order or were there before.

    appended at the position ──▶ hashed from the buffer that it came in ─┐
    appended elsewhere ──▶ present ──▶ read back, once all before it is ─┴▶ at the end, and durable ──▶ judged

A content is *due* when its digest could go on, or be judged, without anybody's doing. It is made due by whoever appends at its
position and does not hash that, and by whoever records it as durable; of what is missing nobody takes notice.

Of a tar the headers are read once more: its toc was made from what the registry sent when the tar was opened, and that was
covered by no digest.
"""

from __future__ import annotations

import os
import queue
import threading
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO, Self

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Toc
from modelvold.store.content import Content, content_of
from modelvold.store.running import RunningDigest, Stamp
from modelvold.store.segment import Writer

#: sha256 is the slowest step of a pull and drops the GIL; one thread takes one content at a time.
_THREADS = max(2, min(4, len(os.sched_getaffinity(0))))
#: Added to the threads' niceness, where that is allowed: what arrives out of order is hashed by one thread, and many append. On two cores
#: four of them left it two fifths of one, and most of the hashing for after the last byte had come.
_NICE = -5
#: Bytes. Between two pieces a thread competes with all that transfers do, and loses: the longer it hashes without asking, the better.
_BUFFER = 4 << 20
#: Bytes that are read back of one content before others that are due have their turn.
_TURN = 256 << 20
#: Seconds between two tries to write down a judgement on a full disk.
_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Hashed:
    """Bytes: from the buffers that they came in, and from segment files."""

    followed: int = 0
    read_back: int = 0


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


class Verification:
    """`judged` gets each content with its digest, and the stamp of what that was taken of; `failed` those whose digest could not be taken
    or judged. `has(number)` says whether a content is in the store."""

    def __init__(
        self,
        judged: Callable[[Content, str, Stamp], None],
        failed: Callable[[Content, Exception], None],
        has: Callable[[int], bool],
    ) -> None:
        self._judged = judged
        self._failed = failed
        self._has = has
        self._queue: queue.SimpleQueue[Content | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._lock = threading.Lock()  # guards the three below
        self._running: dict[int, RunningDigest] = {}
        self._due: dict[int, bool] = {}  # queued, or with a thread; whether it must be looked at once more after that
        self.hashed = Hashed()
        self._threads = [threading.Thread(target=self._run, name=f"verify-{n}") for n in range(_THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is hashed to its end is judged; nothing more is read back."""
        self._ending.set()
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def follow(self, writer: Writer, piece: memoryview) -> None:
        """`writer` has just appended `piece`, of a content that is not verified. Waits for nobody."""
        content = content_of(writer.segment)
        running, is_new = self._running_of(content)
        if followed := running.follow(writer, piece):
            self._count(followed=followed)
        if (followed or is_new or running.is_at(writer.segment)) and running.is_behind:
            self.submit(content)

    def submit(self, content: Content) -> None:
        """It is due."""
        with self._lock:
            is_due = content.id in self._due
            self._due[content.id] = is_due
        if not is_due:
            self._queue.put(content)

    def is_pending(self, content: Content) -> bool:
        """Whether its digest goes on, or is judged, without anybody's doing."""
        with self._lock:
            return content.id in self._due

    def forget(self, content: Content) -> None:
        """It is verified, in quarantine or removed. Should its bytes come again they are hashed from the first on."""
        with self._lock:
            self._running.pop(content.id, None)

    def _running_of(self, content: Content) -> tuple[RunningDigest, bool]:
        """Its running digest, and whether that is new."""
        with self._lock:
            if (running := self._running.get(content.id)) is not None:
                return running, False
            running = self._running[content.id] = RunningDigest(content)
        if not self._has(content.id):
            self.forget(content)  # or whoever removes it does, later
        return running, True

    def _count(self, *, followed: int = 0, read_back: int = 0) -> None:
        with self._lock:
            self.hashed = Hashed(self.hashed.followed + followed, self.hashed.read_back + read_back)

    def _run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        with suppress(PermissionError):  # needs CAP_SYS_NICE, or RLIMIT_NICE
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
        while (content := self._queue.get()) is not None:
            while self._take_turn(content, buffer):
                if not self._ending.is_set():
                    self._queue.put(content)  # behind others
                    break

    def _take_turn(self, content: Content, buffer: memoryview) -> bool:
        """Whether it is due all the same, or again."""
        with self._lock:
            self._due[content.id] = False
        is_due = self._try(content, buffer)
        with self._lock:
            is_due = self._due.pop(content.id) or is_due
            if is_due:
                self._due[content.id] = False
        return is_due

    def _try(self, content: Content, buffer: memoryview) -> bool:
        try:
            return self._go_on(content, buffer)
        except Exhausted as failure:
            self._failed(content, failure)
            return not self._ending.wait(_PAUSE)
        except Exception as error:  # noqa: BLE001 — carried to who judges
            self._failed(content, error)
            return False

    def _go_on(self, content: Content, buffer: memoryview) -> bool:
        if content.state != "unverified" or not self._has(content.id):
            self.forget(content)
            return False
        running, _ = self._running_of(content)
        left = _TURN
        while got := running.read_on(buffer, self._ending.is_set):
            self._count(read_back=got)
            left -= got
            if left <= 0:
                return not self._ending.is_set()
        if not (running.is_at_end and content.is_durable):
            return False
        self._judged(content, *running.found())
        return content.state != "unverified" or running.go_back()
