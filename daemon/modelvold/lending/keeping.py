"""What stays and what goes: leases, pins, models that nobody uses any more, and prefetches that a full disk had ended.

A model *in use* has a user (a snapshot, a folder, a pull) or is mounted; while it is, its time of last use moves. What nobody uses
is forgotten when it is asked for (`gc`), or by itself after `[store] keep`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, Self

from modelvold.errors import Exhausted, InUse
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.report import Collected
from modelvold.lending.wrong import Wrong
from modelvold.mount.table import MountTable
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.room import Lease
from modelvold.store.store import Store

log = logging.getLogger(__name__)

#: Seconds between two looks at what has room again, and at what is in use.
_LOOK, _LOOK_AT_USE = 1.0, 30.0
_COMPLETE = "all of it is here, and goes on to be read"
_INCOMPLETE = "reads of what is missing fail until modelvold runs again; while systemd restarts it, they wait"


class Lent(Protocol):
    """The desk, as far as is needed here."""

    def rows(self) -> list[VolumeRow]: ...

    def users(self, volume: str) -> list[str]: ...

    def give_up(self, row: VolumeRow) -> int:
        """Forgets it; the bytes freed. Raises InUse."""
        ...

    def used(self, volumes: Sequence[str], when: int) -> None:
        """Writes down that they were in use at `when`."""
        ...


class Keeping:
    """Also what the store asks of the rooms above it (store.ports.Above). `keep` in seconds, None for until room is needed;
    `prefetch(volume, contents)` begins to fetch these ahead of being read, None where nothing is."""

    def __init__(
        self,
        store: Store,
        fetcher: Fetcher,
        table: MountTable,
        lent: Lent,
        wrong: Wrong,
        *,
        keep: float | None,
        prefetch: Callable[[str, Sequence[Content]], None] | None,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._table = table
        self._lent = lent
        self._keep = keep
        self._prefetch = prefetch
        self._reach = (
            store.room.within_reach()
        )  # as the last look found it: it takes a while where there are many segments
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeping")
        self._wrong = wrong
        self.on_wrong = wrong.drop

    def __enter__(self) -> Self:
        self._store.serve(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def leases(self) -> Mapping[int, Lease]:
        leases: dict[int, Lease] = {}
        for row in self._lent.rows():
            in_use = Lease.MOUNTED if self._table.asks(row.id) else Lease.HELD
            lease = Lease.HELD if row.is_pinned else in_use if self.is_in_use(row) else Lease.NONE
            for content in row.contents:
                leases[content] = max(lease, leases.get(content, Lease.NONE))
        return leases

    def start_over(self, content: Content) -> bool:
        return self._fetcher.start_over(content)

    def is_in_use(self, row: VolumeRow) -> bool:
        return self._table.is_mounted(row.id) or bool(self._lent.users(row.id))

    def collect(self, dry_run: bool) -> list[Collected]:
        """Forgets every model that nobody uses and nobody pinned; those that were, or would be."""
        found, going = [], set[str]()
        for row in self._unused():
            freed = sum(content.present for content in self._own(row, going))
            if dry_run or self._forget(row, "gc"):
                found.append(Collected(row.reference, str(row.manifest), freed))
                going.add(row.id)
        return found

    def is_streaming(self, row: VolumeRow) -> bool:
        """Whether it is read through, since not all of it has room."""
        missing = self._missing(row)
        return missing > self._reach and self._table.asks(row.id) and self._table.is_mounted(row.id)

    def tell_what_stays(self) -> None:
        """At the daemon's end: who goes on reading which models, and which of them will miss something."""
        for row in self._lent.rows():
            users = self._lent.users(row.id)
            if users and self._table.is_mounted(row.id):
                is_complete = all(content.is_durable for content in self._contents(row))
                log.log(
                    logging.INFO if is_complete else logging.WARNING,
                    "leave volume=%s reference=%s users=%d first=%r reason=%r",
                    row.id,
                    row.reference,
                    len(users),
                    users[0],
                    _COMPLETE if is_complete else _INCOMPLETE,
                )

    def _run(self) -> None:
        looked = 0.0
        while not self._ending.wait(_LOOK):
            try:
                self._store.database.refill()
                self._resume()
                self._wrong.recheck()
                if time.monotonic() - looked > _LOOK_AT_USE:
                    looked = time.monotonic()
                    self._look_at_use()
            except Exception:  # whatever one look met, the next ones are needed
                log.exception("keep failed")

    def _resume(self) -> None:
        """What is mounted becomes complete when there is room for all of it: prefetch had ended for want of that, or what it brought
        was evicted. What failed for another cause is left to who reads it."""
        mounted = [row for row in self._lent.rows() if self._table.is_mounted(row.id)]
        left = [(row, missing) for row in mounted if (missing := self._missing(row))]
        for row in mounted:
            self._table.read_ahead(row.id, is_complete=all(content.is_durable for content in self._contents(row)))
        if not left:
            return  # as most of the time: no look at all that the store holds
        reach = self._reach = self._store.room.within_reach()
        for row, missing in left:
            if self._prefetch is not None and missing <= reach:
                self._prefetch(row.id, [content for content in self._contents(row) if self._is_left(content)])

    def _is_left(self, content: Content) -> bool:
        has_failed = content.last_error is not None and not isinstance(content.last_error, Exhausted)
        is_wanted = content.state != "quarantined" and content.present < content.length and not has_failed
        return is_wanted and not self._fetcher.is_prefetching(content)

    def _missing(self, row: VolumeRow) -> int:
        """Bytes of the disk that all of it would take besides."""
        return sum(s.padded - s.taken for c in self._contents(row) if not c.is_durable for s in c.segments)

    def _look_at_use(self) -> None:
        in_use = [row.id for row in self._lent.rows() if self.is_in_use(row)]
        now = int(time.time())
        self._lent.used(in_use, now)
        if self._keep is not None:
            for row in self._unused():
                if row.used < now - self._keep:
                    self._forget(row, "keep")

    def _unused(self) -> list[VolumeRow]:
        return [row for row in self._lent.rows() if not row.is_pinned and not self._lent.users(row.id)]

    def _forget(self, row: VolumeRow, why: str) -> bool:
        try:
            freed = self._lent.give_up(row)
        except InUse as failure:
            log.info("keep volume=%s reason=%r", row.id, failure.message)
            return False
        log.info("forget volume=%s reference=%s why=%s freed=%d", row.id, row.reference, why, freed)
        return True

    def _own(self, row: VolumeRow, going: AbstractSet[str]) -> list[Content]:
        """The contents that no other volume names, but for those that go too."""
        staying = [other for other in self._lent.rows() if other.id != row.id and other.id not in going]
        others = {number for other in staying for number in other.contents}
        return [content for content in self._contents(row) if content.id not in others]

    def _contents(self, row: VolumeRow) -> list[Content]:
        return [self._store.content(number) for number in row.contents if self._store.has(number)]
