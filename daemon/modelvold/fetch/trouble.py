"""What goes wrong, counted: how often in a row, and whether it is news. Pure; the fetcher's lock guards it.

Hundreds of segments may fail for one cause. It is told once for each content, again when it is another one, and again when the first
has come back after bytes had flowed; a registry that works every other time is told of once a minute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from modelvold.errors import Failure
from modelvold.fetch.retry import pause_after
from modelvold.fetch.stretch import Key

#: So many bytes more than at the last failure, and it is no longer "in a row"; the gate moves its deadlines by as many.
PROGRESS = 64 << 10
#: Seconds before the same cause is told of again.
_NEWS_AGAIN = 60.0
#: Causes remembered of one content.
_MOST_CAUSES = 16
#: A demand's segment, or a content whose prefetch it was.
Who = Key | int


@dataclass(slots=True)
class _Row:
    """Failures in a row: how many, how many bytes were present at the last one, and until when it is not asked again."""

    attempt: int
    present: int
    until: float


@dataclass(slots=True)
class _Told:
    """`causes`: when each was told of, and whether it has worked since. `is_open`: that all is well again was not told yet."""

    causes: dict[str, tuple[float, bool]] = field(default_factory=dict)
    is_open: bool = False


class Troubles:
    def __init__(self) -> None:
        self._rows: dict[Who, _Row] = {}
        self._told: dict[int, _Told] = {}

    def fail(self, who: Who, present: int, failure: Failure, now: float) -> float | None:
        """Seconds to leave it alone, None where asking again is no use. `present`: how many bytes there are of it now.

        Failures of one content's prefetch that come while it is left alone already are of one time, and count as one.
        """
        row = self._rows.get(who)
        if row is not None and now < row.until:
            attempt = row.attempt
        else:
            attempt = row.attempt + 1 if row is not None and present - row.present < PROGRESS else 1
        pause = pause_after(failure, attempt, is_awaited=not isinstance(who, int))
        if pause is None:
            self._rows.pop(who, None)
        else:
            self._rows[who] = _Row(attempt, present, now + pause)
        return pause

    def is_news(self, content: int, failure: Failure, now: float) -> bool:
        """Whether somebody should be told."""
        told = self._told.setdefault(content, _Told())
        cause = failure.cause
        at, has_worked = told.causes.pop(cause, (-inf, True))
        is_news = has_worked and now - at >= _NEWS_AGAIN
        told.causes[cause] = (now, False) if is_news else (at, has_worked)
        while len(told.causes) > _MOST_CAUSES:
            del told.causes[next(iter(told.causes))]
        told.is_open = told.is_open or is_news
        return is_news

    def work(self, content: int, who: Who) -> bool:
        """Bytes of the content came as they should. Whether that is news."""
        self._rows.pop(who, None)
        self._rows.pop(content, None)
        told = self._told.get(content)
        if told is None:
            return False
        told.causes = {cause: (at, True) for cause, (at, _) in told.causes.items()}
        was_open, told.is_open = told.is_open, False
        return was_open

    def release(self, key: Key) -> None:
        """Nobody waits for it any more."""
        self._rows.pop(key, None)

    def forget(self, content: int) -> None:
        self._told.pop(content, None)
        self._rows = {who: row for who, row in self._rows.items() if content not in {who, _content_of(who)}}


def _content_of(who: Who) -> int:
    return who if isinstance(who, int) else who[0]
