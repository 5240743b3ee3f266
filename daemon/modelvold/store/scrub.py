"""Bit rot: durable segments read again from the disk, and compared with their record.

At a bounded rate, since whoever serves a model needs the disk too. What has rotted goes at once and is fetched again when it is
read. What lies in whole files (`store.whole`) has no record of its own and is left out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from modelvold.errors import Failure
from modelvold.store.catalog import Catalog
from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment
from modelvold.store.withdrawal import sums_of

log = logging.getLogger(__name__)

#: Bytes a second: a tenth of what a slow NVMe disk reads. A background scrub takes a quarter of it.
RATE = 256 << 20
BACKGROUND_RATE = RATE // 4
#: Seconds between two looks at what is due.
_LOOK = 60.0


@dataclass(frozen=True, slots=True)
class Looked:
    """A segment was read again; `is_right` is None where it went meanwhile."""

    segment: Segment
    is_right: bool | None


def look(catalog: Catalog, segment: Segment, pace: Pace) -> Looked:
    """Reads a segment from the disk, not from memory. What the disk cannot read is not what was recorded."""
    generation = segment.generation
    recorded = catalog.fingerprint(content_of(segment).id, segment.number)
    fingerprint = None
    try:
        _forget_pages(segment)
        fingerprint, _ = sums_of(segment, pace.spend)
        _forget_pages(segment)
    except OSError as error:
        log.warning("read segment=%s error=%s", segment.path, error)
    has_stayed = segment.durable and not segment.leaving and segment.generation == generation and recorded is not None
    return Looked(segment, fingerprint == recorded if has_stayed else None)


def _forget_pages(segment: Segment) -> None:
    with segment.path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Pace:
    """So many bytes a second, on the average. `wait(seconds)` may end early."""

    def __init__(self, rate: int, wait: Callable[[float], object]) -> None:
        self._rate = rate
        self._wait = wait
        self._began = time.monotonic()
        self._spent = 0

    def spend(self, count: int) -> None:
        self._spent += count
        ahead = self._spent / self._rate - (time.monotonic() - self._began)
        if ahead > 0:
            self._wait(ahead)


class Scrubbed(Protocol):
    def contents(self) -> Sequence[Content]: ...

    def scrub(self, content: Content, pace: Pace) -> Iterator[Looked]: ...


class Scrub:
    """Scrubs every content once in `period` seconds, the one that waited longest first."""

    def __init__(self, store: Scrubbed, period: float) -> None:
        self._store = store
        self._period = period
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(min(_LOOK, self._period)):
            for content in self._due():
                try:
                    for _ in self._store.scrub(content, Pace(BACKGROUND_RATE, self._ending.wait)):
                        if self._ending.is_set():
                            return
                except Failure as error:
                    log.warning("scrub content=%s ended reason=%r", content.digest, str(error))

    def _due(self) -> list[Content]:
        before = time.time() - self._period
        return sorted((c for c in self._store.contents() if c.scrubbed < before), key=lambda c: c.scrubbed)
