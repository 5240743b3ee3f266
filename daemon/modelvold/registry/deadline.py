"""A bound on how long something may take altogether, however many steps it has."""

from __future__ import annotations

import math
import time


class Deadline:
    """`seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, most: float = math.inf) -> float:
        """Seconds left, at most `most`; always positive. Raises TimeoutError when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, most)

    def share(self, parts: int) -> Deadline:
        """An equal part of what is left, for the first of `parts` that are tried in turn: a silent one leaves time for
        the rest.
        """
        return Deadline(self.left() / parts)
