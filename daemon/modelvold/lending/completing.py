"""Volumes that their backend shows only when all bytes are here: made complete and ready in the background.

Whoever asks for one waits as long as it may, and is told how far it is; the work goes on, and who asks again joins it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from modelvold.errors import NotYet
from modelvold.lending.report import Progress
from modelvold.store.catalog import VolumeRow

#: Volumes completed at once. Their threads wait for the fetcher, which has its own bound.
_MOST = 16


@dataclass(slots=True)
class _Work:
    future: Future[None] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Completing:
    """`complete(row, cancelled)` does it all and returns when the volume is ready to be mounted, or once `cancelled()`."""

    def __init__(
        self,
        complete: Callable[[VolumeRow, Callable[[], bool]], None],
        progress: Callable[[VolumeRow], Progress],
    ) -> None:
        self._complete = complete
        self._progress = progress
        self._lock = threading.Lock()  # guards _works
        self._works: dict[str, _Work] = {}
        self._threads = ThreadPoolExecutor(_MOST, thread_name_prefix="complete")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            works = list(self._works.values())
        for work in works:
            work.cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for work in works:
            if not work.future.done():  # it was never begun
                work.future.set_exception(NotYet("modelvold is stopping", "ask for it again"))

    def start(self, row: VolumeRow) -> Future[None]:
        """The work on this volume, begun if nobody had."""
        with self._lock:
            work = self._works.get(row.id)
            if work is None:
                work = self._works[row.id] = _Work()
                self._threads.submit(self._run, row, work)
        return work.future

    def wait(self, row: VolumeRow, seconds: float) -> None:
        """Returns when the volume is ready. Raises NotYet, with how far it is, after `seconds`; and what the work raised."""
        future = self.start(row)
        if not wait([future], seconds).done:
            raise self._not_yet(row)
        future.result()

    def cancel(self, row: VolumeRow) -> None:
        """Ends the work on this volume, if there is any, and waits for its end."""
        with self._lock:
            work = self._works.get(row.id)
        if work is not None:
            work.cancelled.set()
            work.future.exception()

    def _run(self, row: VolumeRow, work: _Work) -> None:
        end = partial(work.future.set_result, None)
        try:
            self._complete(row, work.cancelled.is_set)
            if work.cancelled.is_set():
                end = partial(work.future.set_exception, NotYet(f"model {row.reference}: given up", "ask for it again"))
        except BaseException as error:  # noqa: BLE001 — carried to who asked
            end = partial(work.future.set_exception, error)
        with self._lock:
            del self._works[row.id]
        end()

    def _not_yet(self, row: VolumeRow) -> NotYet:
        step = self._progress(row)
        share = 100 * step.present // row.size if row.size else 100
        return NotYet(
            f"model {row.reference}: {share} % of its {row.size} bytes are here, and it is shown when all are",
            "the work goes on: it will be tried again; see `modelvold status`",
        )
