"""Who waits for which segment, and until when. Pure: it is told the time, and its owner sees to it that one at a time asks.

    (nothing) ──add──▶ waiting ──covered──▶ (nothing)
                          │ late, failed
                          ▼
                       cooling ──its time is over, or bytes come──▶ (nothing)

A deadline is one for a segment, from its first waiting read. Only progress worth the name moves it: a registry that sends a byte
now and then must not hold a reader for ever. Once a segment has failed its reads are denied at once for a while, because the kernel
asks up to four times for one access.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelvold.store.content import content_of
from modelvold.store.segment import Segment

#: How long reads of a segment that failed are denied without asking again, seconds.
COOL_DOWN = 5.0
#: Reads of one volume that may wait: each is a descriptor of ours, and they must not starve other volumes.
MOST_WAITING = 4096
#: Bytes that must have come since a deadline moved last for it to move again. (All of them, where fewer were missing.)
PROGRESS = 64 << 10


@dataclass(frozen=True, slots=True)
class Waiting:
    """A read that waits: `need` is how long the segment file must be for it, `since` on the monotonic clock; `slot` is its note."""

    fd: int
    pid: int
    need: int
    since: float
    slot: int = -1


@dataclass(slots=True)
class _Queue:
    """The waiting reads of one segment. `until` is its deadline, or, where it has failed, the end of the cool-down; `seen` is how
    many bytes there were when that was set."""

    segment: Segment
    volume: str
    reads: list[Waiting] = field(default_factory=list)
    until: float = 0.0
    seen: int = 0
    is_cooling: bool = False


class Waits:
    """`deadline` in seconds."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._queues: dict[int, _Queue] = {}  # by inode
        self._waiting: dict[str, int] = {}  # reads by volume

    def __repr__(self) -> str:
        return f"<waits segments={len(self._queues)} reads={sum(self._waiting.values())}>"

    def reads(self, inodes: set[int]) -> list[Waiting]:
        return [read for inode, queue in self._queues.items() if inode in inodes for read in queue.reads]

    def is_waited_for(self, segment: Segment) -> bool:
        queue = self._queues.get(segment.inode)
        return queue is not None and bool(queue.reads)

    def is_cooling(self, segment: Segment, now: float) -> bool:
        """Whether reads of it are to be denied at once."""
        queue = self._queues.get(segment.inode)
        if queue is None or not queue.is_cooling or now >= queue.until:
            return False
        # Of a withheld one nobody counts here what has come: it would be a sum over many.
        return segment.withheld or segment.present < _goal(queue.seen, segment.padded)

    def is_full(self, volume: str) -> bool:
        return self._waiting.get(volume, 0) >= MOST_WAITING

    def add(self, segment: Segment, volume: str, read: Waiting) -> None:
        queue = self._queues.setdefault(segment.inode, _Queue(segment, volume))
        if not queue.reads:
            self._set_deadline(queue, read.since)
        queue.reads.append(read)
        self._waiting[queue.volume] = self._waiting.get(queue.volume, 0) + 1

    def covered(self, segment: Segment) -> list[Waiting]:
        """The reads that have what they need, and wait no more."""
        queue = self._queues.get(segment.inode)
        return self._take(queue, segment.shown) if queue else []

    def withdraw(self, number: int) -> Segment | None:
        """The read with this number waits no more. Its segment, where nobody else waits for that."""
        for queue in self._queues.values():
            left = [read for read in queue.reads if read.fd != number]
            if len(left) < len(queue.reads):
                queue.reads = left
                self._waiting[queue.volume] -= 1
                return None if left else queue.segment
        return None

    def start_over(self, segment: Segment, now: float) -> bool:
        """Its bytes are gone, and come again. Whether somebody waits for them."""
        queue = self._queues.get(segment.inode)
        if queue is None or not queue.reads:
            return False
        self._set_deadline(queue, now)
        return True

    def fail(self, segment: Segment, volume: str, now: float) -> list[Waiting]:
        """Those who wait for it do so no more."""
        queue = self._queues.setdefault(segment.inode, _Queue(segment, volume))
        queue.is_cooling, queue.until, queue.seen = True, now + COOL_DOWN, segment.present
        return self._take(queue)

    def drop(self, segment: Segment) -> list[Waiting]:
        """As if it had never been waited for."""
        queue = self._queues.pop(segment.inode, None)
        return self._take(queue) if queue else []

    def next_deadline(self) -> float:
        return min((queue.until for queue in self._queues.values() if queue.reads), default=float("inf"))

    def look(self, now: float) -> list[Waiting]:
        """To be called about once a second: deadlines move where bytes have come. Gives the reads that have what they need and of
        which nobody was told."""
        counts: dict[int, int] = {}  # of withheld contents: each is a sum over its segments
        for inode, queue in list(self._queues.items()):
            if queue.reads:
                self._move_deadline(queue, now, counts)
            elif not queue.is_cooling or now >= queue.until:
                del self._queues[inode]
        return [read for queue in self._queues.values() for read in self._take(queue, queue.segment.shown)]

    def late(self, now: float) -> list[tuple[Segment, list[Waiting]]]:
        """The segments whose deadlines have passed without progress, with those who waited. They have failed."""
        overdue = [queue for queue in self._queues.values() if queue.reads and queue.until <= now]
        counts: dict[int, int] = {}
        for queue in overdue:
            self._move_deadline(queue, now, counts)
        return [(q.segment, self.fail(q.segment, q.volume, now)) for q in overdue if q.until <= now]

    def take_all(self) -> list[Waiting]:
        queues, self._queues = self._queues, {}
        self._waiting.clear()
        return [read for queue in queues.values() for read in queue.reads]

    def _set_deadline(self, queue: _Queue, now: float) -> None:
        queue.is_cooling, queue.until, queue.seen = False, now + self._deadline, _count(queue.segment)

    def _move_deadline(self, queue: _Queue, now: float, counts: dict[int, int]) -> None:
        segment = queue.segment
        content = content_of(segment)
        if segment.withheld and content.id not in counts:
            counts[content.id] = content.present
        count = counts[content.id] if segment.withheld else segment.present
        if count >= _goal(queue.seen, content.length if segment.withheld else segment.padded):
            queue.until, queue.seen = now + self._deadline, count
        queue.seen = min(queue.seen, count)

    def _take(self, queue: _Queue, shown: int | None = None) -> list[Waiting]:
        taken = [read for read in queue.reads if shown is None or read.need <= shown]
        if taken:
            queue.reads = [read for read in queue.reads if shown is not None and read.need > shown]
            self._waiting[queue.volume] -= len(taken)
        return taken


def _count(segment: Segment) -> int:
    """What has come of it; of a withheld one, of all that must be here before it is shown."""
    return content_of(segment).present if segment.withheld else segment.present


def _goal(seen: int, total: int) -> int:
    """How many bytes there must be for more to have come than `seen`."""
    return max(seen + 1, min(seen + PROGRESS, total))
