"""What is fetched before anybody waits for it: stretches in their order, and before them what lies ahead of readers. Pure.

A content whose prefetch failed is *quiet* until a moment, and goes behind the others; one that is *suspended* waits until something of
it goes well; of one that is *confined*, since there is no room for all of it, no more is fetched than a little ahead of its readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelvold.fetch.readers import Readers
from modelvold.fetch.stretch import Key, Segments, Stretch

#: One request asks for no more than this or one segment. Where a demand takes a segment out of a longer one, what the registry has
#: already sent of it (up to 4 MiB of its socket's buffer and all of ours) has crossed the wire in vain.
LONGEST_TRANSFER = 64 << 20
#: The shorter what is left of a stretch, the shorter are requests, so that all connections end at about one time: each connection has
#: so many to come. But below this the time until an answer begins would count.
_TO_COME, _SHORTEST = 2, 16 << 20
#: Contents of which one request each is made before one of them has two: what comes in order is hashed as it comes. But not so many that
#: a reader of the first would wait for the last.
_ABREAST = 4
#: Bytes ahead of a reader of a confined content: what is fetched goes at the cost of what others read.
_CONFINED_WINDOW = 32 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """What one request asks for. `is_led`: a reader is right behind it."""

    stretch: Stretch
    is_led: bool


class Ahead:
    """`is_free(key)`: missing, and in nobody's hands."""

    def __init__(self, segments: Segments, is_free: Callable[[Key], bool]) -> None:
        self._length = segments.length
        self._is_free = is_free
        self._readers = Readers(segments)
        self._order: list[Stretch] = []
        self._wanted: dict[int, list[Stretch]] = {}  # by content, as asked for
        self._together: dict[int, int] = {}  # by content: those with one number were asked for together
        self._times = 0
        self._suspended: dict[int, list[Stretch]] = {}
        self._confined: set[int] = set()
        self._quiet: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._order)

    def want(self, order: Sequence[Stretch]) -> None:
        """In this order, behind what was wanted before; contents that were wanted already keep their place, in the new order."""
        contents = {stretch.content for stretch in order}
        place = next((n for n, stretch in enumerate(self._order) if stretch.content in contents), len(self._order))
        for content in contents:
            self._remove(content)
        self._order[place:place] = order
        self._times += 1
        for stretch in order:
            self._wanted.setdefault(stretch.content, []).append(stretch)
            self._together[stretch.content] = self._times

    def drop(self, content: int) -> None:
        self._remove(content)
        self._quiet.pop(content, None)
        self._readers.forget(content)

    def _remove(self, content: int) -> None:
        if content in self._wanted:
            self._order = [stretch for stretch in self._order if stretch.content != content]
        self._wanted.pop(content, None)
        self._together.pop(content, None)
        self._suspended.pop(content, None)
        self._confined.discard(content)

    def suspend(self, content: int) -> None:
        """No more of it until `resume`."""
        if (stretches := self._wanted.get(content)) is not None:
            self._remove(content)
            self._quiet.pop(content, None)
            self._suspended[content] = stretches

    def confine(self, content: int) -> None:
        """No more of it than a little ahead of its readers, until it is wanted again."""
        if content in self._wanted:
            self._remove(content)
            self._confined.add(content)

    def resume(self, content: int) -> None:
        """It goes on where it was suspended."""
        if (stretches := self._suspended.get(content)) is not None:
            self.want(stretches)

    def is_suspended(self, content: int) -> bool:
        return content in self._suspended

    def is_wanted(self, content: int) -> bool:
        return content in self._wanted

    def is_left(self, content: int) -> bool:
        """Whether some of it may not have been asked for yet."""
        return any(stretch.content == content for stretch in self._order)

    def read(self, key: Key) -> bool:
        """Somebody waits for a segment. Whether that was to be expected of somebody who reads upward."""
        if key[0] in self._confined:
            return self._readers.note(key, _CONFINED_WINDOW)
        return key[0] in self._wanted and self._readers.note(key)

    def give_back(self, key: Key, until: float = 0.0) -> None:
        """One that was asked for and has not come: first of all; where it failed, not before `until` and behind all others."""
        content, number = key
        if content not in self._wanted:
            return
        if until:
            self._quiet[content] = until
            self._order.sort(key=lambda stretch: stretch.content == content)
        place = 0
        if until:  # behind all others; the first of its own
            own = (n for n, stretch in enumerate(self._order) if stretch.content == content)
            place = next(own, len(self._order))
        end = number + 1
        if place < len(self._order) and self._order[place] == Stretch(content, end, self._order[place].end):
            end = self._order.pop(place).end
        self._order.insert(place, Stretch(content, number, end))

    def calm(self, content: int) -> None:
        """Something of it went well."""
        self._quiet.pop(content, None)

    def next_time(self) -> float | None:
        """When there will be something to do that there is not now."""
        return min((until for content, until in self._quiet.items() if self.is_left(content)), default=None)

    def run(
        self, may: Callable[[int], bool], under_way: Callable[[int], int], connections: int, now: float
    ) -> Run | None:
        """What the next request asks for: adjacent segments of one content of which one `may` ask. So many requests are `under_way` of
        a content; `connections` share the work."""
        allowed: dict[int, bool] = {}

        def is_allowed(content: int) -> bool:
            if content not in allowed:
                allowed[content] = self._quiet.get(content, 0.0) <= now and may(content)
            return allowed[content]

        def is_read(content: int) -> bool:
            return (content in self._wanted or content in self._confined) and is_allowed(content)

        ahead = self._readers.next(self._is_free, is_read)
        if ahead is not None:
            return Run(Stretch(ahead.content, ahead.first, self._end_of_run(ahead, _SHORTEST)), is_led=True)
        stretch = self._next_of_order(is_allowed, under_way, connections)
        return Run(stretch, is_led=False) if stretch is not None else None

    def _next_of_order(
        self, is_allowed: Callable[[int], bool], under_way: Callable[[int], int], connections: int
    ) -> Stretch | None:
        firsts = self._firsts(is_allowed)
        if not firsts:
            return None
        at = min(firsts, key=lambda number: under_way(self._order[number].content))
        stretch = self._order[at]
        left = (stretch.end - stretch.first) * self._length((stretch.content, stretch.first))
        end = self._end_of_run(stretch, min(LONGEST_TRANSFER, max(_SHORTEST, left // (_TO_COME * connections))))
        self._order[at] = Stretch(stretch.content, end, stretch.end)
        return Stretch(stretch.content, stretch.first, end)

    def _firsts(self, is_allowed: Callable[[int], bool]) -> list[int]:
        """Where in the order the first stretch of each of the first contents is that begins with a free segment; of those that were
        asked for together."""
        found: dict[int, int] = {}
        at = 0
        while at < len(self._order) and len(found) < _ABREAST:
            stretch = self._order[at]
            if stretch.content in found or not is_allowed(stretch.content):
                at += 1
                continue
            first = self._first_free(stretch)
            if first == stretch.end:
                del self._order[at]
                continue
            if found and self._together[stretch.content] != self._together[next(iter(found))]:
                break
            self._order[at] = Stretch(stretch.content, first, stretch.end)
            found[stretch.content] = at
            at += 1
        return list(found.values())

    def _first_free(self, stretch: Stretch) -> int:
        numbers = range(stretch.first, stretch.end)
        return next((n for n in numbers if self._is_free((stretch.content, n))), stretch.end)

    def _end_of_run(self, stretch: Stretch, most: int) -> int:
        """Where a request ends that begins with this stretch and asks for no more than `most` bytes, or one segment."""
        end, size = stretch.first, 0
        while end < stretch.end and self._is_free((stretch.content, end)):
            size += self._length((stretch.content, end))
            if size > most and end > stretch.first:
                break
            end += 1
        return end
