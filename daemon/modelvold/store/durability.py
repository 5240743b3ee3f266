"""From present to durable: a small pool syncs each segment as it completes, one thread records what was synced, in batches.

A segment's record is written after its `fdatasync` returned without error, by the descriptor that wrote the bytes. One failed sync
means that the kernel may have dropped pages it called written: the store is *failing* from then on, for good. A disk without room
for the record is no failure: what was synced waits, unrecorded, until there is some.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from modelvold import points
from modelvold.errors import Exhausted
from modelvold.points import Point
from modelvold.store.segment import Segment, Writer

log = logging.getLogger(__name__)

#: More do not help: the device is the limit, and four keep its queue filled.
SYNCERS = 4
_LARGEST_BATCH = 256
#: Seconds between two tries to record on a full disk.
_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Synced:
    """A segment's bytes of one `generation` are on disk. `fingerprint` is that of all of them, None where some are missing."""

    segment: Segment
    generation: int
    fingerprint: bytes | None

    @property
    def holds(self) -> bool:
        """Whether it still speaks of what is there, and of what is to stay."""
        return self.segment.generation == self.generation and not self.segment.leaving


Recorded = Callable[[Sequence[Synced]], None]


class Durability:
    """`record` is called by one thread with what has been synced; `failed` for every error of a sync or of the catalog."""

    def __init__(self, record: Recorded, failed: Callable[[str], None]) -> None:
        self._record = record
        self._failed = failed
        self._to_sync: queue.SimpleQueue[tuple[Synced, int] | None] = queue.SimpleQueue()
        self._to_record: queue.SimpleQueue[Synced | None] = queue.SimpleQueue()
        self._syncers = [threading.Thread(target=self._sync, name=f"sync-{n}") for n in range(SYNCERS)]
        self._recorder = threading.Thread(target=self._record_batches, name="record")
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        for thread in (*self._syncers, self._recorder):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _syncer in self._syncers:
            self._to_sync.put(None)
        for thread in self._syncers:
            thread.join()
        self._ending.set()
        self._to_record.put(None)
        self._recorder.join()

    def submit(self, synced: Synced) -> None:
        """It is on disk, and is to be recorded."""
        self._to_record.put(synced)

    def sync(self, writer: Writer) -> None:
        """What `writer` has appended; by a descriptor of its own, for errors of writing back are told to the one that wrote. An
        incomplete segment is synced too, so that a disk that fails is noticed while nobody has read much of what it lost."""
        segment = writer.segment
        fingerprint = segment.fingerprint() if segment.is_complete else None
        self._to_sync.put((Synced(segment, writer.generation, fingerprint), writer.detach()))

    def _sync(self) -> None:
        while (work := self._to_sync.get()) is not None:
            synced, descriptor = work
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                self._failed(f"fdatasync of {synced.segment.path}: {error.strerror}")
            else:
                points.at(Point.STORE_SYNCED)
                if synced.fingerprint is not None:
                    self._to_record.put(synced)
            finally:
                os.close(descriptor)

    def _record_batches(self) -> None:
        while (first := self._to_record.get()) is not None:
            batch = [first]
            while len(batch) < _LARGEST_BATCH and not self._to_record.empty():
                following = self._to_record.get()
                if following is None:
                    self._to_record.put(None)
                    break
                batch.append(following)
            self._record_batch(batch)

    def _record_batch(self, batch: Sequence[Synced]) -> None:
        has_waited = False
        while not (has_waited and self._ending.wait(_PAUSE)):  # at an end: the next start fetches them again
            try:
                return self._record(batch)
            except Exhausted as failure:
                if not has_waited:
                    log.warning("record segments=%d waits reason=%r", len(batch), str(failure))
                has_waited = True
            except Exception as error:
                log.exception("record segments=%d failed", len(batch))
                return self._failed(f"the catalog: {error}")
        return None
