"""From present to durable: a small pool syncs each segment as it completes, one thread records what was synced, in batches.

A segment's record is written after its `fdatasync` returned without error, by the descriptor that wrote the bytes. One failed sync
means that the kernel may have dropped pages it called written: the store is *failing* from then on, for good.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Self

from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

#: More do not help: the device is the limit, and four keep its queue filled.
SYNCERS = 4
_LARGEST_BATCH = 256

Recorded = Callable[[Sequence[tuple[Segment, bytes]]], None]


class Durability:
    """`record` is called by one thread with what has been synced; `failed` once for every error of a sync."""

    def __init__(self, record: Recorded, failed: Callable[[str], None]) -> None:
        self._record = record
        self._failed = failed
        self._to_sync: queue.SimpleQueue[tuple[Segment, int, bytes] | None] = queue.SimpleQueue()
        self._to_record: queue.SimpleQueue[tuple[Segment, bytes] | None] = queue.SimpleQueue()
        self._syncers = [threading.Thread(target=self._sync, name=f"sync-{n}") for n in range(SYNCERS)]
        self._recorder = threading.Thread(target=self._record_batches, name="record")

    def __enter__(self) -> Self:
        for thread in (*self._syncers, self._recorder):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _syncer in self._syncers:
            self._to_sync.put(None)
        for thread in self._syncers:
            thread.join()
        self._to_record.put(None)
        self._recorder.join()

    def submit(self, segment: Segment, descriptor: int) -> None:
        """A complete segment; the descriptor, which wrote to it, becomes ours."""
        self._to_sync.put((segment, descriptor, segment.fingerprint()))

    def _sync(self) -> None:
        while (work := self._to_sync.get()) is not None:
            segment, descriptor, fingerprint = work
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                self._failed(f"fdatasync of {segment.path}: {error.strerror}")
            else:
                self._to_record.put((segment, fingerprint))
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
            try:
                self._record(batch)
            except Exception as error:
                log.exception("record segments=%d failed", len(batch))
                self._failed(f"the catalog: {error}")
