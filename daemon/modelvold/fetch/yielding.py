"""When prefetch holds still so that a demand comes sooner. Pure.

Where the line is full, a demand's transfer gets its share of it: one of seventeen, beside sixteen prefetches. While somebody waits who
was not expected (a reader that reads upward is: what is ahead of it is being fetched, and holding that still would only make it wait
again), prefetches from the same host begin nothing and do not read from their sockets, which stops their senders, and the demand has
the line for itself. That is of use where connections take from one another, and not where a host bounds each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

#: A demand for which nothing comes for so many seconds holds nobody.
_SILENCE = 0.5


def holds(came: Iterable[float], now: float, *, each_counts: bool) -> bool:
    """Whether prefetches from a host hold still for transfers from there that somebody waits for who was not expected: `came` is
    when something of each came last, or it began. `each_counts`: the host bounds each connection by itself (fetch.pace)."""
    return not each_counts and any(now - last <= _SILENCE for last in came)
