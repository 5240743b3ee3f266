"""A bound on how many bytes a second come from registries, all told. Pure: it says how long to wait.

Demands and prefetch share it, demands first: a demand waits for what demands have taken, a prefetch for what both have. So demands alone
never exceed it, and prefetch has what they leave.
"""

from __future__ import annotations

from math import inf

#: Seconds' worth of it that may come at once.
_BURST = 0.1
#: Seconds that prefetch waits at most for what demands have taken, so that the line is not idle for long after them: more than 64
#: connections owe for a piece each.
_LONGEST = 10.0


class Bandwidth:
    """`rate` in bytes a second; None: no bound."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._demands_until = -inf  # when what demands have taken has been paid for
        self._all_until = -inf

    @property
    def is_bound(self) -> bool:
        return self._rate is not None

    def piece(self, most: int) -> int:
        """How many bytes to read at once, of at most so many, that nobody waits long behind them."""
        return most if self._rate is None else max(4096, min(most, int(self._rate * _BURST)))

    def take(self, count: int, now: float, *, is_demand: bool) -> float:
        """`count` bytes have come. Seconds to wait before the next are read."""
        if self._rate is None:
            return 0.0
        cost = count / self._rate
        self._all_until = min(max(self._all_until, now - _BURST) + cost, now + _LONGEST)
        if not is_demand:
            return max(0.0, self._all_until - now)
        self._demands_until = max(self._demands_until, now - _BURST) + cost
        return max(0.0, self._demands_until - now)
