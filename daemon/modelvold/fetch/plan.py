"""What to fetch next. Pure: it is told what happens, and says which segments the next transfer fills.

Demand before prefetch; a segment is in flight once at most. Requests are bounded in all and for each host, and of either one is kept for
a demand. Prefetch keeps within what the host is found to give (`fetch.pace`), and makes way for demands where that is not enough: a
transfer that *cedes* ends at the byte it has come to. Adjacent segments of one content go in one request when nobody waits for them. A
demanded segment that a running transfer has claimed but not begun is taken from it.

    missing ──next──▶ claimed ──begin──▶ begun ──done──▶ (forgotten)
       ▲                 │ demand takes it   │
       ├─────────────────┴── ceded, or ──────┤
       │                     unfinished      │
       └──── the time has come ── resting ◀──┘ failed

What failed rests, and holds no worker meanwhile: a demand by itself, a prefetch with all of its content, which goes behind the others.
Contents of which the last transfer failed take half of the workers at most, their prefetches half of that: a registry that lets
every request hang leaves workers to others, and to its own demands.

A content whose registry knows no ranges comes in *one stream* from its first byte, whatever is demanded of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modelvold.fetch.ahead import Ahead
from modelvold.fetch.stretch import Key, Segments, Stretch


@dataclass(frozen=True, slots=True)
class Assignment:
    """Segments [first, first + count) of one content, adjacent, for one request to `host`.

    `is_led`: a reader is right behind them. `is_stream`: the body begins with the content's first byte, and some of the segments are
    here already.
    """

    id: int
    content: int
    first: int
    count: int
    host: str
    is_demand: bool
    is_led: bool = False
    is_stream: bool = False

    @property
    def keys(self) -> list[Key]:
        return [(self.content, number) for number in range(self.first, self.first + self.count)]


class Plan:
    """`connections` in all, `per_host` for each host and one more for a demand; `pace(host)` is how many prefetch should take."""

    def __init__(self, segments: Segments, connections: int, per_host: int, pace: Callable[[str], int]) -> None:
        self._segments = segments
        self._connections = connections
        self._per_host = min(per_host, connections)
        self._pace = pace
        self._most_troubled = max(1, connections // 2)
        self._ahead = Ahead(segments, self._is_free)
        self._demands: OrderedDict[Key, None] = OrderedDict()
        self._claims: dict[Key, int] = {}
        self._begun: set[Key] = set()
        self._awaited: set[Key] = set()  # waited for while in flight: a demand again, should that transfer end early
        self._sudden: set[Key] = set()  # waited for, where no reader was expected
        self._resting: dict[Key, float] = {}  # demands that failed, and until when they are left alone
        self._troubled: set[int] = set()  # contents of which a transfer failed, and none has gone well since
        self._streams: set[int] = set()  # contents whose registry knows no ranges
        self._running: dict[int, Assignment] = {}
        self._ceding: set[int] = set()
        self._last = 0

    def __repr__(self) -> str:
        return f"<plan demands={len(self._demands)} ahead={len(self._ahead)} running={sorted(self._running)}>"

    # -- somebody waits

    def demand(self, key: Key) -> None:
        """Somebody waits. At once, unless it is for one that rests, for which somebody waited already."""
        if not self._segments.is_missing(key) or key in self._resting:
            return
        if not self._ahead.read(key) and key not in self._awaited and key not in self._demands:
            self._sudden.add(key)
        if key in self._begun or self._is_next(key) or self._is_in_stream(key):
            self._awaited.add(key)
        else:
            self._claims.pop(key, None)
            self._demands[key] = None
            self._make_way(self._segments.host(key[0]))

    def release(self, key: Key) -> None:
        """Nobody waits for it any more. A transfer that has begun it goes on; a prefetch that a demand took it from has it back."""
        if self._demands.pop(key, self) is None or self._resting.pop(key, None) is not None:
            self._ahead.give_back(key)
        self._awaited.discard(key)
        self._sudden.discard(key)

    def is_awaited(self, key: Key) -> bool:
        """Whether somebody waits for one in flight."""
        return key in self._awaited

    # -- ahead

    def prefetch(self, order: Sequence[Stretch]) -> None:
        """These, best first, behind the prefetches asked for before; contents that were asked for already keep their place."""
        self._ahead.want(order)

    def stop_prefetch(self, content: int) -> None:
        self._ahead.drop(content)

    def suspend_prefetch(self, content: int) -> None:
        """No more of it until `resume_prefetch`."""
        self._ahead.suspend(content)

    def confine_prefetch(self, content: int) -> None:
        """There is no room for all of it: no more than a little ahead of its readers, until it is asked for again."""
        self._ahead.confine(content)

    def resume_prefetch(self, content: int) -> None:
        """It goes on where it was suspended."""
        self._ahead.resume(content)

    def forget(self, content: int) -> None:
        """No more prefetch of it, and no more demands."""
        self._ahead.drop(content)
        self._troubled.discard(content)
        self._streams.discard(content)
        for table in (self._demands, self._resting):
            for key in [key for key in table if key[0] == content]:
                del table[key]
        for keys in (self._awaited, self._sudden):
            keys -= {key for key in keys if key[0] == content}

    def is_ahead_done(self, content: int) -> bool:
        """Whether no more of it is to be asked for ahead, for now or at all; a suspended one waits."""
        return not self._ahead.is_left(content) and not self._ahead.is_suspended(content)

    def is_prefetching(self, content: int) -> bool:
        """Whether all of it is still on its way: what somebody waits for too counts."""
        if self._ahead.is_left(content) or any(a.content == content for a in self._running.values()):
            return True
        waits = (*self._demands, *self._resting)
        return self._ahead.is_wanted(content) and any(key[0] == content for key in waits)

    # -- transfers

    def next(self, now: float = 0.0) -> Assignment | None:
        """The next transfer, to be answered by `end`; None when there is nothing to do that may be done `now` (monotonic)."""
        due = [key for key, until in self._resting.items() if until <= now]
        for key in due:
            del self._resting[key]
            self._demands[key] = None
        for host in {self._host(key) for key in due}:
            self._make_way(host)
        return self._next_demand() or self._next_ahead(now)

    def next_time(self) -> float | None:
        """When there will be something to do that there is not now, if nobody asks for anything before."""
        times = (*self._resting.values(), self._ahead.next_time())
        return min((time for time in times if time is not None), default=None)

    def begin(self, assignment: Assignment, key: Key) -> bool:
        """Whether the transfer may fill this segment now: not where a demand has taken it."""
        if not self.has(assignment, key):
            return False
        self._begun.add(key)
        return True

    def stream(self, content: int) -> None:
        """Its registry knows no ranges."""
        self._streams.add(content)

    def unstream(self, content: int) -> None:
        """Another host has answered, which does."""
        self._streams.discard(content)

    def end(
        self, assignment: Assignment, unfinished: Iterable[Key] = (), until: float = 0.0, *, went_well: bool = True
    ) -> None:
        """The transfer is over. `unfinished` segments, but those a demand has taken, are missing again, and wanted as they were;
        where it failed, not before `until`. It `went_well` where it did not, and something of it came."""
        self._running.pop(assignment.id, None)
        self._ceding.discard(assignment.id)
        self._note(assignment, failed=bool(until), went_well=went_well)
        again = set(unfinished)
        for key in reversed(assignment.keys):
            if self._claims.get(key) != assignment.id:
                continue
            del self._claims[key]
            self._begun.discard(key)
            if key in again and key in self._awaited:
                self._put_back(key, until)
            elif key in again:
                self._ahead.give_back(key, until)
            self._awaited.discard(key)
            if key not in again:
                self._sudden.discard(key)
        self._make_way(assignment.host)

    # -- of transfers under way

    def has(self, assignment: Assignment, key: Key) -> bool:
        """Whether the segment is this transfer's to fill, and no demand has taken it."""
        return self._claims.get(key) == assignment.id

    def must_cede(self, assignment: Assignment) -> bool:
        """Whether it is to end where it is: a demand waits for a connection, and here nobody does."""
        return assignment.id in self._ceding

    def waited_for(self) -> set[int]:
        """The transfers that somebody waits for."""
        return {claim for key in self._awaited if (claim := self._claims.get(key)) is not None}

    def rushed(self, host: str) -> set[int]:
        """The transfers from this host that somebody waits for who was not expected."""
        claims = (self._claims.get(key) for key in self._sudden)
        return {claim for claim in claims if claim is not None and self._running[claim].host == host}

    def in_flight(self, host: str) -> int:
        return sum(assignment.host == host for assignment in self._running.values())

    # -- how

    def _next_demand(self) -> Assignment | None:
        for key in list(self._demands):
            if not self._segments.is_missing(key):
                del self._demands[key]
                self._sudden.discard(key)
            elif key in self._claims:  # by a stream
                del self._demands[key]
                self._awaited.add(key)
            elif key[0] in self._streams and self._is_running(key[0]):
                continue
            elif self._may_ask(key[0], self._most_troubled) and self.in_flight(self._host(key)) <= self._per_host:
                return self._assign(Stretch(key[0], key[1], key[1] + 1), is_demand=True)
        return None

    def _next_ahead(self, now: float) -> Assignment | None:
        prefetches = [a.host for a in self._running.values() if not a.is_demand]
        if len(prefetches) >= max(1, self._connections - 1):
            return None

        def may(content: int) -> bool:
            host = self._segments.host(content)
            return (
                prefetches.count(host) < self._pace(host)
                and self.in_flight(host) < self._per_host
                and self._may_ask(content, max(1, self._most_troubled // 2))
                and not (content in self._streams and self._is_running(content))
            )

        run = self._ahead.run(may, self._under_way, self._per_host, now)
        return self._assign(run.stretch, is_demand=False, is_led=run.is_led) if run else None

    def _assign(self, stretch: Stretch, *, is_demand: bool, is_led: bool = False) -> Assignment:
        is_stream = stretch.content in self._streams
        if is_stream:
            stretch = Stretch(stretch.content, 0, self._segments.count(stretch.content))
        self._last += 1
        assignment = Assignment(
            self._last,
            stretch.content,
            stretch.first,
            stretch.end - stretch.first,
            self._segments.host(stretch.content),
            is_demand=is_demand,
            is_led=is_led,
            is_stream=is_stream,
        )
        self._running[assignment.id] = assignment
        for key in assignment.keys:
            if is_stream and (key in self._claims or not self._segments.is_missing(key)):
                continue
            self._claims[key] = assignment.id
            waits = [table.pop(key, self) is not self for table in (self._demands, self._resting)]
            if any(waits):
                self._awaited.add(key)
        if is_demand and not is_stream:
            self._awaited.update(assignment.keys)
        return assignment

    def _make_way(self, host: str) -> None:
        """As many prefetches cede as there are demands without a connection, of this host or in all: those of this host first, then those
        of which something comes, since they are told at once; the last begun first."""
        here = sum(self._host(key) == host for key in self._demands)
        ceding_here = sum(self._running[number].host == host for number in self._ceding)
        short_here = here - (self._per_host + 1 - self.in_flight(host)) - ceding_here
        short_of_all = len(self._demands) - (self._connections - len(self._running)) - len(self._ceding)
        short = max(short_here, short_of_all if here else 0)
        if short <= 0:
            return
        kept = self._ceding | self.waited_for()
        may_cede = [a for a in self._running.values() if not (a.is_demand or a.is_stream or a.id in kept)]
        if short_here > 0:
            may_cede = [a for a in may_cede if a.host == host]
        may_cede.sort(key=lambda a: (a.host == host, any(key in self._begun for key in a.keys), a.id), reverse=True)
        self._ceding.update(a.id for a in may_cede[:short])

    def _note(self, assignment: Assignment, *, failed: bool, went_well: bool) -> None:
        if failed:
            self._troubled.add(assignment.content)
        elif went_well:
            self._troubled.discard(assignment.content)
            self._ahead.calm(assignment.content)

    def _put_back(self, key: Key, until: float) -> None:
        if until:
            self._resting[key] = until
        else:  # whoever waits has done so for a while
            self._demands[key] = None
            self._demands.move_to_end(key, last=False)

    def _may_ask(self, content: int, most: int) -> bool:
        """Whether a transfer of it may begin: not where `most` are under way of those that fail."""
        return content not in self._troubled or sum(a.content in self._troubled for a in self._running.values()) < most

    def _host(self, key: Key) -> str:
        return self._segments.host(key[0])

    def _under_way(self, content: int) -> int:
        return sum(assignment.content == content for assignment in self._running.values())

    def _is_running(self, content: int) -> bool:
        return self._under_way(content) > 0

    def _is_free(self, key: Key) -> bool:
        taken = key in self._claims or key in self._demands or key in self._resting
        return not taken and self._segments.is_missing(key)

    def _is_next(self, key: Key) -> bool:
        """Its transfer begins with it, as every demand's does: asking once more would bring it no sooner."""
        assignment = self._running.get(self._claims.get(key, 0))
        return assignment is not None and assignment.first == key[1]

    def _is_in_stream(self, key: Key) -> bool:
        return key[0] in self._streams and key in self._claims
