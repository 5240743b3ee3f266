"""What to fetch next. Pure: it is told what happens, and says which segments the next transfer fills.

Demand before prefetch; a segment is in flight once at most; prefetch never takes the last worker, so that a demand finds one free.
Adjacent segments of one content go in one request when nobody waits for them. A demanded segment that a running transfer has
claimed but not begun is taken from it.

    missing ──next──▶ claimed ──begin──▶ begun ──done──▶ (forgotten)
       ▲                 │ demand takes it   │
       ├─────────────────┴──── returned ─────┤
       └──── the time has come ── resting ◀──┘ failed

What failed rests, and holds no worker meanwhile: a demand by itself, a prefetch with all of its content, which goes behind the others.
Contents of which the last transfer failed take half of the workers at most, their prefetches half of that: a registry that lets
every request hang leaves workers to others, and to its own demands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: (content, segment number)
Key = tuple[int, int]

#: A prefetch request asks for no more than this or one segment. Where a demand takes a segment out of a longer one, what the
#: registry has already sent of it (up to 4 MiB of its socket's buffer and all of ours) has crossed the wire in vain.
LONGEST_TRANSFER = 16 << 20


@dataclass(frozen=True, slots=True)
class Assignment:
    """Segments `first` to `first + count`, of the `total` of one content, adjacent, for one request."""

    id: int
    content: int
    first: int
    count: int
    is_demand: bool
    total: int = 0

    @property
    def keys(self) -> list[Key]:
        return [(self.content, number) for number in range(self.first, self.first + self.count)]


class Plan:
    """`is_missing(key)` says whether a segment still lacks bytes, `length(key)` how many bytes it has in all."""

    def __init__(self, workers: int, is_missing: Callable[[Key], bool], length: Callable[[Key], int]) -> None:
        self._most_prefetches = max(1, workers - 1)
        self._most_troubled = max(1, workers // 2)
        self._is_missing = is_missing
        self._length = length
        self._demands: OrderedDict[Key, None] = OrderedDict()
        self._prefetches: OrderedDict[int, tuple[int, int]] = OrderedDict()  # content → cursor, number of segments
        self._claims: dict[Key, int] = {}
        self._begun: set[Key] = set()
        self._awaited: set[Key] = set()  # waited for while in flight: a demand again, should that transfer end early
        self._wanted: dict[int, int] = {}  # content → number of segments, of those to be fetched whole
        self._resting: dict[Key, float] = {}  # demands that failed, and until when they are left alone
        self._quiet: dict[int, float] = {}  # contents whose prefetch failed, likewise
        self._troubled: set[int] = set()  # contents of which a transfer failed, and none has gone well since
        self._suspended: dict[
            int, int
        ] = {}  # content → number of segments, where prefetch waits for something to go well
        self._running: dict[int, Assignment] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<plan demands={len(self._demands)} prefetches={len(self._prefetches)} running={sorted(self._running)}>"

    def demand(self, key: Key) -> None:
        """Somebody waits. At once, unless it is for one that rests, for which somebody waited already."""
        if not self._is_missing(key) or key in self._resting:
            return
        if key in self._begun or self._is_next(key):
            self._awaited.add(key)
        else:
            self._claims.pop(key, None)
            self._demands[key] = None

    def release(self, key: Key) -> None:
        """Nobody waits for it any more. A transfer that has begun it goes on; a prefetch that a demand took it from has it back."""
        if self._demands.pop(key, self) is None or self._resting.pop(key, None) is not None:
            self._rewind(key)
        self._awaited.discard(key)

    def is_awaited(self, key: Key) -> bool:
        """Whether somebody waits for one in flight."""
        return key in self._awaited

    def prefetch(self, content: int, segments: int) -> None:
        """All of a content, behind the prefetches asked for before."""
        self.stop_prefetch(content)
        self._prefetches[content] = (0, segments)
        self._wanted[content] = segments

    def stop_prefetch(self, content: int) -> None:
        for table in (self._prefetches, self._wanted, self._suspended, self._quiet):
            table.pop(content, None)

    def suspend_prefetch(self, content: int) -> None:
        """No more of it until `resume_prefetch`."""
        if (segments := self._wanted.get(content)) is not None:
            self.stop_prefetch(content)
            self._suspended[content] = segments

    def resume_prefetch(self, content: int) -> None:
        """It goes on where it was suspended."""
        if (segments := self._suspended.get(content)) is not None:
            self.prefetch(content, segments)

    def forget(self, content: int) -> None:
        """No more prefetch of it, and no more demands."""
        self.stop_prefetch(content)
        self._troubled.discard(content)
        for table in (self._demands, self._resting):
            for key in [key for key in table if key[0] == content]:
                del table[key]
        self._awaited = {key for key in self._awaited if key[0] != content}

    def is_prefetching(self, content: int) -> bool:
        """Whether all of it is still on its way: what somebody waits for too counts."""
        if content in self._prefetches or any(a.content == content for a in self._running.values()):
            return True
        return content in self._wanted and any(key[0] == content for key in (*self._demands, *self._resting))

    def next(self, now: float = 0.0) -> Assignment | None:
        """The next transfer, to be answered by `end`; None when there is nothing to do that may be done `now` (monotonic)."""
        for key in [key for key, until in self._resting.items() if until <= now]:
            del self._resting[key]
            self._demands[key] = None
        for key in list(self._demands):
            if not self._is_missing(key) or key in self._claims:
                del self._demands[key]
            elif self._has_worker(key[0], self._most_troubled):
                del self._demands[key]
                return self._assign(key[0], key[1], 1)
        if sum(not a.is_demand for a in self._running.values()) >= self._most_prefetches:
            return None
        for content in list(self._prefetches):
            found = self._next_run(content) if self._may_prefetch(content, now) else None
            if found is not None:
                return self._assign(content, *found)
        return None

    def next_time(self) -> float | None:
        """When there will be something to do that there is not now, if nobody asks for anything before."""
        quiet = (self._quiet[content] for content in self._prefetches if content in self._quiet)
        return min((*self._resting.values(), *quiet), default=None)

    def begin(self, assignment: Assignment, key: Key) -> bool:
        """Whether the transfer may fill this segment now: not where a demand has taken it."""
        if self._claims.get(key) != assignment.id:
            return False
        self._begun.add(key)
        return True

    def end(self, assignment: Assignment, unfinished: Iterable[Key] = (), until: float = 0.0) -> None:
        """The transfer is over. `unfinished` segments, but those a demand has taken, are missing again, and wanted as they were;
        where it failed, not before `until`."""
        self._running.pop(assignment.id, None)
        self._note(assignment, failed=bool(until))
        again = set(unfinished)
        for key in assignment.keys:
            if self._claims.get(key) != assignment.id:
                continue
            del self._claims[key]
            self._begun.discard(key)
            if key in again and key in self._awaited:
                self._put_back(key, until)
            elif key in again:
                self._rewind(key, until)
            self._awaited.discard(key)

    def _note(self, assignment: Assignment, *, failed: bool) -> None:
        if failed:
            self._troubled.add(assignment.content)
        else:
            self._troubled.discard(assignment.content)
            self._quiet.pop(assignment.content, None)

    def _put_back(self, key: Key, until: float) -> None:
        if until:
            self._resting[key] = until
        else:
            self._demands[key] = None

    def _has_worker(self, content: int, most: int) -> bool:
        """Whether a transfer of it may begin: not where `most` are under way of those that fail."""
        return content not in self._troubled or len(self._failing()) < most

    def _failing(self) -> list[Assignment]:
        return [assignment for assignment in self._running.values() if assignment.content in self._troubled]

    def _may_prefetch(self, content: int, now: float) -> bool:
        if self._quiet.get(content, 0.0) > now:
            return False
        return self._has_worker(content, max(1, self._most_troubled // 2))

    def _assign(self, content: int, first: int, count: int, total: int = 0) -> Assignment:
        self._last += 1
        assignment = Assignment(self._last, content, first, count, is_demand=not total, total=total)
        self._running[assignment.id] = assignment
        for key in assignment.keys:
            self._claims[key] = assignment.id
        if assignment.is_demand:
            self._awaited.update(assignment.keys)
        return assignment

    def _next_run(self, content: int) -> tuple[int, int, int] | None:
        """The next adjacent missing, unclaimed segments from the content's cursor: (first, count, total)."""
        cursor, total = self._prefetches[content]
        while cursor < total and not self._is_free((content, cursor)):
            cursor += 1
        if cursor == total:
            del self._prefetches[content]
            return None
        first, size = cursor, 0
        while cursor < total and self._is_free((content, cursor)):
            size += self._length((content, cursor))
            if size > LONGEST_TRANSFER and cursor > first:
                break
            cursor += 1
        self._prefetches[content] = (cursor, total)
        return first, cursor - first, total

    def _is_free(self, key: Key) -> bool:
        return not (key in self._claims or key in self._demands or key in self._resting) and self._is_missing(key)

    def _is_next(self, key: Key) -> bool:
        """Its transfer begins with it, as every demand's does: asking once more would bring it no sooner."""
        assignment = self._running.get(self._claims.get(key, 0))
        return assignment is not None and assignment.keys[0] == key

    def _rewind(self, key: Key, until: float = 0.0) -> None:
        content, number = key
        if content not in self._wanted:
            return
        cursor, total = self._prefetches.get(content, (number, self._wanted[content]))
        self._prefetches[content] = (min(cursor, number), total)
        if until:
            self._quiet[content] = until
            self._prefetches.move_to_end(content)
