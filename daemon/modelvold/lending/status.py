"""The report: what `status` shows, read from the rooms as they are."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from modelvold import __version__
from modelvold.errors import NotFound
from modelvold.lending.lending import Lending
from modelvold.lending.report import NodeReport, Report, VolumeReport, WaitingRead
from modelvold.mount.gate import Gate
from modelvold.mount.table import MountTable
from modelvold.store.catalog import VolumeRow
from modelvold.store.segment import Segment
from modelvold.store.store import Store

_NO_JOURNAL = "its file system has no journal"


class Status:
    def __init__(
        self,
        store: Store,
        lending: Lending,
        table: MountTable,
        gate: Gate | None,
        *,
        facade: str,
        prefetch: bool,
        backend_reason: str,
    ) -> None:
        self._store = store
        self._lending = lending
        self._table = table
        self._gate = gate
        self._facade = facade
        self._prefetch = prefetch
        self._backend_reason = backend_reason
        self._started = time.monotonic()
        self._snapshots: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def ask_snapshots(self, counts: Callable[[], tuple[int, int]]) -> None:
        """How many there are, and how many of them are in use: the room above knows."""
        self._snapshots = counts

    def report(self, reference: str | None) -> Report:
        """Of all volumes, or of those that `reference` names. Raises NotFound when it names none."""
        rows = self._lending.find(reference)
        if reference and not rows:
            raise NotFound(f"model {reference}: not in the store", "see `modelvold status` without a reference")
        stranded = self._table.stranded()
        volumes = tuple(self.volume(row, stranded.get(row.id, ())) for row in rows)
        return Report(self._node(), volumes)

    def volume(self, row: VolumeRow, stranded: Sequence[str] = ()) -> VolumeReport:
        """`stranded` as of `mount.backend.Backend`, for this one."""
        contents = self._lending.contents(row)
        segments = [segment for content in contents for segment in content.segments]
        present = sum(content.present for content in contents)
        rate = self._lending.rates.of(contents)
        errors = [str(content.last_error) for content in contents if content.last_error]
        errors += [f"layer {content.digest}: {content.reason}" for content in contents if content.reason]
        is_mounted = self._table.is_mounted(row.id)
        return VolumeReport(
            id=row.id,
            reference=row.reference,
            manifest=str(row.manifest),
            state=self._state(row),
            backend=self._table.shown_by(row.id) if is_mounted else "",
            path=str(self._table.path(row.id)) if is_mounted else "",
            size=row.size,
            present=present,
            durable=sum(content.durable for content in contents),
            verified=sum(content.verified for content in contents),
            segments=len(segments),
            segments_complete=sum(segment.is_complete for segment in segments),
            rate=rate,
            eta=(row.size - present) / rate if rate > 0 else -1.0,
            waiting=self._waiting(segments),
            consumers=tuple(self._lending.users(row.id)),
            last_error=errors[0] if errors else "",
            pinned=row.is_pinned,
            used=0.0 if self._lending.keeping.is_in_use(row) else max(0.0, time.time() - row.used),
            poisoned=self._lending.wrong.names(row.id),
            stranded=tuple(stranded),
        )

    def _waiting(self, segments: Sequence[Segment]) -> tuple[WaitingRead, ...]:
        reads = self._gate.waiting(segments) if self._gate else []
        return tuple(WaitingRead(read.pid, _command(read.pid), time.monotonic() - read.since) for read in reads)

    def _state(self, row: VolumeRow) -> str:
        contents = self._lending.contents(row)
        if any(content.state == "quarantined" for content in contents):
            return "quarantined"
        if self._store.failing:
            return "failing"
        if all(content.is_durable for content in contents):
            return "verified" if all(content.is_verified for content in contents) else "complete"
        if self._lending.keeping.is_streaming(row):
            return "streaming"
        return "lazy" if self._table.is_lazy else "fetching"

    def _node(self) -> NodeReport:
        disk = shutil.disk_usage(self._store.root)
        snapshots, in_use = self._snapshots()
        return NodeReport(
            version=__version__,
            backend=self._table.backend,
            backend_reason=self._backend_reason,
            store=str(self._store.root),
            store_state=f"failing: {self._store.failing.message}" if self._store.failing else "ok",
            store_used=self._store.used(),
            disk_total=disk.total,
            disk_free=disk.free,
            memory=psutil.Process().memory_info().rss,
            uptime=time.monotonic() - self._started,
            facade=self._facade,
            prefetch=self._prefetch,
            events=self._gate.events if self._gate else 0,
            reads_denied=self._gate.denied if self._gate else 0,
            last_error=self._gate.last_error if self._gate else "",
            quota=self._store.room.bounds.quota,
            reserve=self._store.room.bounds.reserve,
            room=self._store.room.free(),
            evicted=self._store.room.evicted,
            not_durable=_NO_JOURNAL if self._store.lacks_journal else "",
            scrubbed=self._scrubbed(),
            wrong_segments=self._store.wrong_segments,
            snapshots=snapshots,
            snapshots_in_use=in_use,
        )

    def _scrubbed(self) -> float:
        oldest = min((content.scrubbed for content in self._store.contents() if content.is_durable), default=0)
        return time.time() - oldest if oldest else -1.0


def _command(pid: int) -> str:
    """The thread's name. Never its command line: reading that hangs while the process waits in a page fault."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if pid != os.getpid() else "modelvold"
    except OSError:
        return "?"
