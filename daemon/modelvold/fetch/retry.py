"""Whether and when to ask again. Pure."""

from __future__ import annotations

from modelvold.errors import Failure, Unreachable

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0


def pause_after(failure: Failure, attempt: int) -> float | None:
    """Seconds to wait before asking again, after the `attempt`-th failure in a row (from 1); None: asking again is no use.

    Only a registry's passing trouble is worth another try; who waits, and for how long, is the gate's to say.
    """
    if not isinstance(failure, Unreachable):
        return None
    return float(min(_FIRST_PAUSE * 2.0 ** min(attempt - 1, 10), _LONGEST_PAUSE))
