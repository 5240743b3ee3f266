"""Whether all of the machine's cores are in use."""

from __future__ import annotations

import psutil

#: Of the time between two looks.
_BUSY = 0.9


class Cores:
    def __init__(self) -> None:
        self._idle, self._all = _times()

    def are_busy(self) -> bool:
        """Since this was asked last. (What waits for the disk does not use a core.)"""
        before_idle, before = self._idle, self._all
        self._idle, self._all = _times()
        passed = self._all - before
        return passed > 0 and (self._idle - before_idle) / passed < 1 - _BUSY


def _times() -> tuple[float, float]:
    """Seconds of all cores together: idle, and all."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return idle, sum(times[:8])  # what guests have is counted in user's already
