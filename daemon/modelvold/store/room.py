"""Room: how many bytes may still be written, and what goes to make more of them.

Whoever is about to fetch segments takes the room for all of them first, so that a full disk or quota is a decision at the start
and not an accident in the middle. What nobody uses goes first, then, and only for bytes that somebody waits for, what a mounted
volume may need again; within each the least recently used. `choose` is pure. Nothing is written while the lock is held: what is
promised to one is counted until it has been set aside on the disk, and what is going is chosen by nobody else. Nobody is refused
while others take or make room: what they leave may be enough.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from modelvold.errors import Exhausted, Failing
from modelvold.linux.files import sync_folder_filesystem
from modelvold.store.amount import size
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

_REMEDY = "make room: `modelvold gc`, `modelvold rm`, `modelvold unpin`, or another [store] quota or disk"
#: What goes ahead of being needed. Of what nobody uses: times what is needed. Of what is mounted: a part of all that may go, for a
#: model that does not fit is read at no more than this every second; the rest is what its readers come back to.
_AHEAD_OF_UNUSED, _AHEAD_OF_MOUNTED, _MOST_AHEAD = 8, 1 / 4, 1 << 30


class Lease(IntEnum):
    """What keeps a content's bytes from eviction."""

    NONE = 0  # no volume that is in use needs them
    MOUNTED = (
        1  # a mounted volume may read them again: they go when nothing else can, for bytes that somebody waits for
    )
    HELD = 2  # pinned, or of a volume whose backend cannot fetch them again


@dataclass(frozen=True, slots=True)
class Bounds:
    """`quota`: most bytes that segments may take, 0 for no such bound. `reserve`: bytes of the disk that are left to others."""

    quota: int = 0
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A segment that could go: `touched` on the monotonic clock, `taken` in bytes of the disk."""

    segment: Segment
    lease: Lease
    touched: float
    taken: int


def choose(candidates: Iterable[Candidate], short: int, most: Lease, ahead: Mapping[Lease, int]) -> list[Candidate]:
    """Those that must go for `short` bytes more, none with a lease above `most`; empty where they would not be enough.

    `ahead` bytes more go with the last of them, of those with its lease: each going takes its second, and room is needed again soon.
    """
    chosen: list[Candidate] = []
    for candidate in sorted((c for c in candidates if c.lease <= most), key=lambda c: (c.lease, c.touched)):
        if short <= 0 and (candidate.lease != chosen[-1].lease or short <= -ahead[candidate.lease]):
            break
        chosen.append(candidate)
        short -= candidate.taken
    return chosen if short <= 0 else []


class Room:
    """`evict(segments)` makes them missing. `leases()` gives the leases there are, by content; others have none. `is_freed_late`: see
    linux.filesystem. `owed()`: bytes of the disk that the catalog is to have."""

    def __init__(
        self,
        root: Path,
        bounds: Bounds,
        contents: Callable[[], Sequence[Content]],
        evict: Callable[[Sequence[Segment]], None],
        leases: Callable[[], Mapping[int, Lease]],
        *,
        is_freed_late: bool = False,
        owed: Callable[[], int] = lambda: 0,
    ) -> None:
        self._root = root
        self.bounds = bounds
        self._contents = contents
        self._evict = evict
        self._leases = leases
        self._is_freed_late = is_freed_late
        self._owed = owed
        self._settled = threading.Condition()  # guards the four below
        self._held: Counter[Segment] = Counter()  # of transfers under way
        self._promised: set[Segment] = set()
        self._going: set[Segment] = set()
        self.evicted = 0

    @contextmanager
    def taken(self, segments: Sequence[Segment], *, is_read: bool) -> Iterator[None]:
        """As `take`, and while the block lasts none of these goes."""
        with self._settled:
            self._held.update(segments)
        try:
            self.take(segments, is_read=is_read)
            yield
        finally:
            with self._settled:
                self._held.subtract(segments)
                self._held += Counter()  # drops those that nobody holds
                self._settled.notify_all()

    def take(self, segments: Sequence[Segment], *, is_read: bool) -> None:
        """Room for all of these, of one content, is set aside on the disk. May take a few seconds, for what goes is waited for.

        Raises Exhausted where there is none, and, but for what is read now (`is_read`), where there is none for all of the content: what
        is fetched far ahead of a reader who reads through would only be in its way. Raises Failing where the disk cannot say.
        """
        wanted = [segment for segment in segments if segment.taken < segment.padded]
        if not wanted:
            return
        victims = self._promise(wanted, Lease.MOUNTED if is_read else Lease.NONE)
        try:
            if victims:
                self._let_go(victims)
            for segment in wanted:
                self._set_aside(segment)
        finally:
            with self._settled:
                self._promised.difference_update(wanted)
                self._going.difference_update(c.segment for c in victims)
                self._settled.notify_all()

    def free(self) -> int:
        """Bytes that may be written without anything going; negative where the bounds are passed already."""
        disk = os.statvfs(self._root)
        free = disk.f_bavail * disk.f_frsize - self.bounds.reserve - self._owed()
        if self.bounds.quota:
            free = min(free, self.bounds.quota - self._used())
        return free

    def within_reach(self) -> int:
        """Bytes that may be written if all goes that nobody uses."""
        return self.free() + sum(c.taken for c in self._candidates() if c.lease is Lease.NONE)

    def _promise(self, wanted: Sequence[Segment], most: Lease) -> list[Candidate]:
        """What must go for them. While others take or make room, what is free is no figure to refuse anybody by."""
        with self._settled:
            while (victims := self._fit(wanted, most)) is None:
                if not self._promised:
                    raise self._exhausted(_lacking(wanted if most else content_of(wanted[0]).segments))
                self._settled.wait()
            self._promised.update(wanted)
            self._going.update(c.segment for c in victims)
        return victims

    def _fit(self, wanted: Sequence[Segment], most: Lease) -> list[Candidate] | None:
        """What must go for them, None where that is not enough; but for a demand, for all of their content."""
        free = self.free() - _lacking(self._promised)
        needed = _lacking(wanted)
        whole = [s for s in content_of(wanted[0]).segments if s not in self._promised]
        asked = needed if most else _lacking(whole)
        if asked <= free:
            return []
        candidates = list(self._candidates())
        if asked - free > sum(c.taken for c in candidates if c.lease <= most):
            return None
        return choose(candidates, needed - free, most, _ahead(candidates, needed)) if needed > free else []

    def _let_go(self, victims: Sequence[Candidate]) -> None:
        freed = sum(c.taken for c in victims)
        log.info("evict segments=%d bytes=%d lease=%s", len(victims), freed, victims[-1].lease.name.lower())
        self._evict([c.segment for c in victims])
        if self._is_freed_late:
            sync_folder_filesystem(self._root)
        with self._settled:
            self.evicted += freed

    def _set_aside(self, segment: Segment) -> None:
        try:
            segment.reserve()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._exhausted(segment.padded) from error
            raise Failing(f"store {self._root}: {error.strerror}", "mend the disk") from error

    def _candidates(self) -> Iterator[Candidate]:
        """A transfer's own are not among them. Nor is what lies in whole files while anybody may have them open: the disk would
        not have it back."""
        leases = self._leases()
        for content in self._contents():
            lease = leases.get(content.id, Lease.NONE)
            for segment in content.segments:
                is_busy = segment.is_written or any(
                    segment in group for group in (self._held, self._going, self._promised)
                )
                if segment.taken and not segment.leaving and not is_busy and not (segment.moved and lease):
                    yield Candidate(segment, lease, segment.touched, segment.taken)

    def _used(self) -> int:
        return sum(segment.taken for content in self._contents() for segment in content.segments)

    def _exhausted(self, needed: int) -> Exhausted:
        bounds = [f"a quota of {size(self.bounds.quota)}"] if self.bounds.quota else []
        bounds += [f"{size(self.bounds.reserve)} of the disk left to others"] if self.bounds.reserve else []
        why = f" ({', '.join(bounds)})" if bounds else ""
        left = size(max(0, self.free()))
        return Exhausted(f"store {self._root}: no room for {size(needed)} more, {left} are left{why}", _REMEDY)


def _ahead(candidates: Iterable[Candidate], needed: int) -> Mapping[Lease, int]:
    mounted = sum(c.taken for c in candidates if c.lease is Lease.MOUNTED)
    return {
        Lease.NONE: _AHEAD_OF_UNUSED * needed,
        Lease.MOUNTED: min(int(_AHEAD_OF_MOUNTED * mounted), _MOST_AHEAD),
        Lease.HELD: 0,
    }


def _lacking(segments: Iterable[Segment]) -> int:
    return sum(segment.padded - segment.taken for segment in segments)
