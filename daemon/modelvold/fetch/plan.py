"""What to fetch next. Pure: it is told what happens, and says which segments the next transfer fills.

Demand before prefetch; a segment is in flight once at most; prefetch never takes the last worker, so that a demand finds one free.
Adjacent segments of one content go in one request when nobody waits for them. A demanded segment that a running transfer has
claimed but not begun is taken from it.

    missing ──next──▶ claimed ──begin──▶ begun ──done──▶ (forgotten)
       ▲                 │ demand takes it   │
       └─────────────────┴──── returned ─────┘
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
        self._is_missing = is_missing
        self._length = length
        self._demands: OrderedDict[Key, None] = OrderedDict()
        self._prefetches: OrderedDict[int, tuple[int, int]] = OrderedDict()  # content → cursor, number of segments
        self._claims: dict[Key, int] = {}
        self._begun: set[Key] = set()
        self._awaited: set[Key] = set()  # waited for while in flight: a demand again, should that transfer end early
        self._wanted: dict[int, int] = {}  # content → number of segments, of those to be fetched whole
        self._running: dict[int, Assignment] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"<plan demands={len(self._demands)} prefetches={len(self._prefetches)} running={sorted(self._running)}>"

    def demand(self, key: Key) -> None:
        if not self._is_missing(key):
            return
        if key in self._begun or self._is_next(key):
            self._awaited.add(key)
        else:
            self._claims.pop(key, None)
            self._demands[key] = None

    def release(self, key: Key) -> None:
        """Nobody waits for it any more. A transfer that has begun it goes on; a prefetch that a demand took it from has it back."""
        if self._demands.pop(key, self) is None:
            self._rewind(key)
        self._awaited.discard(key)

    def prefetch(self, content: int, segments: int) -> None:
        """All of a content, behind the prefetches asked for before."""
        self._prefetches[content] = (0, segments)
        self._wanted[content] = segments

    def stop_prefetch(self, content: int) -> None:
        self._prefetches.pop(content, None)
        self._wanted.pop(content, None)

    def forget(self, content: int) -> None:
        """No more prefetch of it, and no more demands."""
        self.stop_prefetch(content)
        for key in [key for key in self._demands if key[0] == content]:
            del self._demands[key]
        self._awaited = {key for key in self._awaited if key[0] != content}

    def is_prefetching(self, content: int) -> bool:
        return content in self._prefetches or any(a.content == content for a in self._running.values())

    def next(self) -> Assignment | None:
        """The next transfer, to be answered by `end`; None when there is nothing to do that may be done now."""
        while self._demands:
            key, _ = self._demands.popitem(last=False)
            if self._is_missing(key) and key not in self._claims:
                return self._assign(key[0], key[1], 1)
        if sum(not a.is_demand for a in self._running.values()) >= self._most_prefetches:
            return None
        for content in list(self._prefetches):
            found = self._next_run(content)
            if found is not None:
                return self._assign(content, *found)
        return None

    def begin(self, assignment: Assignment, key: Key) -> bool:
        """Whether the transfer may fill this segment now: not where a demand has taken it."""
        if self._claims.get(key) != assignment.id:
            return False
        self._begun.add(key)
        return True

    def end(self, assignment: Assignment, unfinished: Iterable[Key] = ()) -> None:
        """The transfer is over. `unfinished` segments, but those a demand has taken, are missing again, and wanted as they were."""
        self._running.pop(assignment.id, None)
        again = set(unfinished)
        for key in assignment.keys:
            if self._claims.get(key) != assignment.id:
                continue
            del self._claims[key]
            self._begun.discard(key)
            if key in again and key in self._awaited:
                self._demands[key] = None
            elif key in again:
                self._rewind(key)
            self._awaited.discard(key)

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
        return key not in self._claims and key not in self._demands and self._is_missing(key)

    def _is_next(self, key: Key) -> bool:
        """Its transfer begins with it, as every demand's does: asking once more would bring it no sooner."""
        assignment = self._running.get(self._claims.get(key, 0))
        return assignment is not None and assignment.keys[0] == key

    def _rewind(self, key: Key) -> None:
        content, number = key
        if content in self._wanted:
            cursor, total = self._prefetches.get(content, (number, self._wanted[content]))
            self._prefetches[content] = (min(cursor, number), total)
