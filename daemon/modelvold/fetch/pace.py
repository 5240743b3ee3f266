"""How many requests at a time a host is worth. Pure: it is told what came, and answers with a number.

A host gives so much for each connection and so much in all; which of the two it is shows only when there are more or fewer. A glance at
a few tells whether connections are slow there: then there are at once as many as may be. From then on fewer are tried for as long as they
bring as much: they cost less, share the line more fairly with others, arrive more in order, and have less on the way when everything
makes way for a demand. Now and then it is tried again, in turn with more and with fewer. What everything else
made way for tells, too: where it alone filled the line, a few are enough. Where the machine's cores are all in use, more
are no help, and for fewer some of the rate is given: digests, and whatever else runs here, have what they leave. What a round of
measuring is worth nothing for (too few requests to do, something that everything makes way for) is not counted. A host that refuses is
asked half as much, and after a while more again.
"""

from __future__ import annotations

#: Requests before anything is known.
_FIRST = 3
#: Bytes a second below which a connection is slow: what object stores are known to give one, or a share of a line that is full. Above, it
#: is the line or the machine that bounds it.
_SLOW = 100e6
#: Seconds of a glance, from the first byte on, and without one.
_GLANCE, _NOTHING = 0.1, 0.15
#: Seconds in full use until a number shows what it is worth, and seconds over which that is measured.
_SETTLE, _ROUND = 0.05, 0.2
#: Seconds between a try that brought nothing and the next, and after a refusal.
_REST, _PENANCE = 10.0, 5.0
#: More requests have brought more where it is more than this; fewer have brought as much.
_MORE, _AS_MUCH, _AS_MUCH_WHERE_BUSY = 1.1, 0.95, 0.8
#: A rate that falls with the number, but for this much of it, shows that each counts.
_EACH_COUNTS = 1.1
#: Fewer than this leave the line empty between two answers.
_LEAST = 2
#: What is refused within so many seconds is refused at one time.
_ONE_TIME = 1.0


class Pace:
    """Of one host. `most` is the largest number, from 1."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = min(_FIRST, most)
        self._glance: tuple[float, int] | None = None  # when it began, and what had come by then
        self._is_known = False
        self._settled = self.limit  # what it goes back to when a try brings nothing
        self._rate = 0.0  # bytes a second at `_settled`
        self.each_counts = False  # the last try at fewer has shown that the host bounds each connection by itself
        self._goes_up = False
        self._is_bold = False  # the last try brought something
        self._rests_until = 0.0
        self._refused = -_ONE_TIME
        self._full_since: float | None = None
        self._began: tuple[float, int] | None = None  # when measuring did, and what had come by then

    def __repr__(self) -> str:
        return f"<pace {self.limit} of {self._most}>"

    def tick(self, now: float, came: int, in_flight: int, *, is_busy: bool = False) -> None:
        """At `now` (monotonic seconds), `came` bytes have come in all and so many requests are under way; the cores are all in use."""
        if not self._is_known:
            self._look(now, came, in_flight)
        elif in_flight < self.limit or now < self._rests_until:
            self._full_since = self._began = None
        else:
            self._measure(now, came, is_busy=is_busy)

    def refuse(self, now: float) -> None:
        """It said that it is asked too often, or broke off. What is refused at about one time counts once."""
        if now - self._refused >= _ONE_TIME:
            self._refused = now
            self.limit = self._settled = max(1, self.limit // 2)
            self._goes_up = self._is_bold = self._is_known = True
            self._full_since = self._began = None
            self._rests_until = now + _PENANCE

    def find_full(self, now: float) -> None:
        """One connection alone was seen to fill the line: a few are enough."""
        if self.limit > _FIRST:
            self._is_known, self._is_bold, self._goes_up = True, False, False
            self.limit = self._settled = _FIRST
            self._full_since = self._began = None
            self._rests_until = now + _REST

    def _look(self, now: float, came: int, in_flight: int) -> None:
        """The glance."""
        if in_flight == 0 or self._glance is None:
            self._glance = (now, came) if in_flight else None
            self._began = None
            return
        since, before = self._glance
        if came == before and now - since >= _NOTHING:
            self._know(self._most)
        elif came > before and self._began is None:
            self._began = now, came
        elif self._began is not None and now - self._began[0] >= _GLANCE:
            rate = (came - self._began[1]) / (now - self._began[0])
            self._know(self._most if rate < _SLOW * in_flight else self.limit)

    def _know(self, limit: int) -> None:
        self._is_known = True
        self.limit = self._settled = limit
        self._began = None

    def _measure(self, now: float, came: int, *, is_busy: bool) -> None:
        if self._full_since is None:
            self._full_since = now
        if self._began is None and now - self._full_since >= _SETTLE:
            self._began = now, came
        if self._began is not None and now - self._began[0] >= _ROUND:
            since, before = self._began
            self._full_since = self._began = None
            self._judge((came - before) / (now - since), now, is_busy=is_busy)

    def _judge(self, rate: float, now: float, *, is_busy: bool) -> None:
        if self.limit < self._settled and self._rate:
            self.each_counts = rate / self._rate <= _EACH_COUNTS * self.limit / self._settled
        if self.limit == self._settled:
            self._rate = rate
            self._try_another(now)
        elif self._is_worth(rate, is_busy=is_busy):
            self._settled, self._rate, self._is_bold = self.limit, rate, True
            self._try_another(now)
        else:
            self._turn_round(now)

    def _is_worth(self, rate: float, *, is_busy: bool) -> bool:
        if self._goes_up:
            return rate > self._rate * _MORE and not is_busy
        return rate > self._rate * (_AS_MUCH_WHERE_BUSY if is_busy else _AS_MUCH)

    def _try_another(self, now: float) -> None:
        """The first step is small, since a wrong one costs what it brings to light."""
        if self._goes_up:
            self.limit = min(self._most, self._settled * 2 if self._is_bold else self._settled * 3 // 2 + 1)
        else:
            self.limit = max(min(_LEAST, self._most), self._settled // 2 if self._is_bold else self._settled * 3 // 4)
        if self.limit == self._settled:
            self._turn_round(now)

    def _turn_round(self, now: float) -> None:
        self.limit = self._settled
        self._goes_up, self._is_bold = not self._goes_up, False
        self._rests_until = now + _REST
