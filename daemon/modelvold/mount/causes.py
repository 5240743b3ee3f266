"""What went wrong, said once: thirty readers of a hundred segments that one registry does not bring are one cause."""

from __future__ import annotations

import logging
import threading
import time

from modelvold.errors import without_counts

log = logging.getLogger(__name__)

#: Seconds for which a cause that was told is counted only.
QUIET = 60.0
_MOST = 64


class Causes:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _told
        self._told: dict[str, tuple[float, int, int]] = {}  # when it was told last, segments and reads counted since

    def tell(self, what: str, reason: str, segments: int, reads: int) -> None:
        """One line, and then for a while none: the next one has what was counted meanwhile."""
        now, cause = time.monotonic(), without_counts(reason)
        with self._lock:
            when, held_segments, held_reads = self._told.pop(cause, (-QUIET, 0, 0))
            is_due = now >= when + QUIET
            segments, reads = segments + held_segments, reads + held_reads
            self._told[cause] = (now, 0, 0) if is_due else (when, segments, reads)
            if len(self._told) > _MOST:
                del self._told[next(iter(self._told))]
        if is_due:
            log.warning("%s segments=%d reads=%d reason=%r", what, segments, reads, reason)
