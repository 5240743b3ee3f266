"""The lending desk: volumes opened, mounted, made complete, given back.

A volume is *used* by snapshots, by folders where an operator placed it, and by processes that have its files open. Only an unused
one is unmounted or removed; who uses it is named.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Self

from modelvold.errors import InUse, InvalidInput, Mismatch, NotFound, NotYet, Refused, Unreachable
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.rates import Rates
from modelvold.lending.report import Progress
from modelvold.linux import mounts
from modelvold.linux.holders import holders
from modelvold.mount.backend import Volume
from modelvold.mount.table import MountTable
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest
from modelvold.oci.reference import Reference, Repository
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.opener import Opener, volume_id

log = logging.getLogger(__name__)

#: Openings under way; each is documents and small files only.
_OPENERS = 8
_LOOK = 0.2


class Lending:
    """`prefetch`: whether a volume's bytes are fetched ahead of being read. `stall`: seconds without a byte after which a pull ends."""

    def __init__(
        self, store: Store, opener: Opener, fetcher: Fetcher, table: MountTable, *, prefetch: bool, stall: float
    ) -> None:
        self._store = store
        self._opener = opener
        self._fetcher = fetcher
        self._table = table
        self._is_prefetching = prefetch
        self._stall = stall
        self._users_of: Callable[[str], Sequence[str]] = lambda _: ()
        self._lock = threading.Lock()  # guards the three tables below
        self._rows: dict[str, VolumeRow] = {}
        self._opening: dict[str, Future[str]] = {}
        self._pulling: dict[str, int] = {}
        self._openers = ThreadPoolExecutor(_OPENERS, thread_name_prefix="open")
        self.rates = Rates(store.contents)

    def __enter__(self) -> Self:
        self._rows = {row.id: row for row in self._store.catalog.volumes()}
        self._table.adopt([self.volume(row) for row in self._rows.values()])
        self._forget_lost_places()
        self.rates.__enter__()
        for volume in self._table.mounted():
            self._start_prefetch(volume)
        return self

    def __exit__(self, *_: object) -> None:
        self.rates.__exit__(*_)
        self._openers.shutdown(wait=True, cancel_futures=True)

    def ask_users_of(self, users_of: Callable[[str], Sequence[str]]) -> None:
        """`users_of(volume)` names the snapshots that stand on it: the room above knows."""
        self._users_of = users_of

    # -- for snapshots (snapshot.Volumes)

    def open(self, repository: Repository, original: Digest, reference: str, wait: float) -> str:
        """The volume's id, opened and mounted, or NotYet after `wait` seconds, and the work goes on."""
        self._store.check()
        volume = volume_id(repository, original)
        with self._lock:
            opening = self._opening.get(volume)
            if opening is None:
                opening = self._openers.submit(self._open, repository, original, reference)
                self._opening[volume] = opening
                opening.add_done_callback(lambda _: self._opened(volume))
        try:
            return opening.result(wait)
        except FutureTimeoutError:
            raise NotYet(
                f"model {reference}: still being opened after {wait:g} s",
                "the work goes on: pull again, see `modelvold status`",
            ) from None

    def mounted(self, volume_id: str) -> Path:
        with self._lock:
            row = self._rows.get(volume_id)
        if row is None:
            raise NotFound(f"volume {volume_id}: not in the store", "remove the image and pull it again")
        volume = self.volume(row)
        path = self._table.ensure(volume)
        self._start_prefetch(volume)
        return path

    def unmount_unused(self, in_use: set[str]) -> None:
        placed = set(self._store.catalog.placed().values())
        for volume in self._table.mounted():
            if volume.id not in in_use | placed:
                self._release_if_closed(volume)

    # -- for operators (rpc.control's Operator, with `report` beside it)

    def mount(self, reference: str, directory: Path) -> VolumeRow:
        """Shows a model at `directory`, an existing folder. Raises InvalidInput, Refused, and whatever opening raises."""
        asked = Reference.parse(reference)
        if not directory.is_absolute() or not directory.is_dir() or directory.resolve() != directory:
            raise InvalidInput(
                f"directory {directory}: not an existing folder named by its real, absolute path", "create it first"
            )
        if str(directory) in self._store.catalog.placed() or directory.is_mount():
            raise Refused(f"directory {directory}: something is mounted there", f"`modelvold umount {directory}` first")
        row = self._resolve_and_open(asked)
        path = self.mounted(row.id)
        mounts.bind_readonly(path, directory)
        self._store.catalog.place(str(directory), row.id)
        log.info("place volume=%s directory=%s", row.id, directory)
        return row

    def unmount(self, directory: Path) -> None:
        volume = self._store.catalog.placed().get(str(directory))
        if volume is None:
            raise NotFound(f"directory {directory}: no model is mounted there by modelvold", "see `modelvold status`")
        try:
            mounts.unmount(directory)
        except OSError as error:
            if directory.is_mount():
                raise InUse(
                    f"directory {directory}: {error.strerror}", "end the programs that have files of it open"
                ) from error
        self._store.catalog.unplace(str(directory))
        log.info("unplace volume=%s directory=%s", volume, directory)
        if not self.users(volume) and (mounted := self._mounted_volume(volume)):
            self._release_if_closed(mounted)

    def pull(self, reference: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """Makes every byte present, durable and verified; the last Progress is done. Raises what keeps it from that."""
        row = self._resolve_and_open(Reference.parse(reference))
        with self._lock:
            self._pulling[row.id] = self._pulling.get(row.id, 0) + 1
        try:
            yield from self._pull(row, cancelled)
        finally:
            with self._lock:
                self._pulling[row.id] -= 1

    def remove(self, reference: str) -> int:
        """Forgets a model and frees its bytes. Raises NotFound, or InUse naming who uses it. Returns the bytes freed."""
        rows = self.find(reference)
        if not rows:
            raise NotFound(f"model {reference}: not in the store", "see `modelvold status`")
        for row in rows:
            self._check_unused(row)
        return sum(self._remove(row) for row in rows)

    # -- what there is

    def find(self, reference: str | None) -> list[VolumeRow]:
        """The volumes that a reference, a manifest's digest or a volume's id names; all of them without one."""
        with self._lock:
            rows = list(self._rows.values())
        if not reference:
            return rows
        exact = [row for row in rows if reference in {row.id, str(row.manifest), row.manifest.hex}]
        if exact:
            return exact
        asked = str(Reference.parse(reference))
        return [row for row in rows if asked in {row.reference, f"{row.repository}@{row.manifest}"}]

    def volume(self, row: VolumeRow) -> Volume:
        return Volume(row.id, self._opener.image_path(row.id), row.uuid, self.contents(row))

    def contents(self, row: VolumeRow) -> tuple[Content, ...]:
        return tuple(self._store.content(number) for number in row.contents)

    def users(self, volume: str) -> list[str]:
        """Who keeps a volume: snapshots by key, folders by path, pulls."""
        placed = [f"folder {where}" for where, what in self._store.catalog.placed().items() if what == volume]
        pulling = ["a pull"] if self._pulling.get(volume) else []
        return [f"snapshot {key}" for key in self._users_of(volume)] + placed + pulling

    # -- how

    def _resolve_and_open(self, asked: Reference) -> VolumeRow:
        manifest = self._opener.resolve(asked)
        return self._ensure_open(asked.repository, manifest, str(asked))

    def _open(self, repository: Repository, original: Digest, reference: str) -> str:
        row = self._ensure_open(repository, self._opener.document(repository, original), reference)
        self.mounted(row.id)
        return row.id

    def _ensure_open(self, repository: Repository, manifest: Manifest, reference: str) -> VolumeRow:
        """The volume's row, made if it is new. Single flight by the lock of its own: two openings of one model are rare and short."""
        name = volume_id(repository, manifest.digest)
        with self._lock:
            row = self._rows.get(name)
        if row is None:
            self._store.check()
            row = self._opener.open(repository, manifest, reference)
            with self._lock:
                self._rows[name] = row
            return row
        for content in self.contents(row):
            if content.state == "quarantined":
                raise Mismatch(
                    f"{reference}: layer {content.digest} is in quarantine: {content.reason}",
                    "remove the model with `modelvold rm`, mend it at the registry, pull again",
                )
        if row.reference != reference:
            self._store.catalog.set_reference(name, reference)
            row = VolumeRow(row.id, repository, row.manifest, reference, row.document, row.uuid, row.size, row.contents)
            with self._lock:
                self._rows[name] = row
        return row

    def _opened(self, volume: str) -> None:
        with self._lock:
            self._opening.pop(volume, None)

    def _start_prefetch(self, volume: Volume) -> None:
        if self._is_prefetching:
            self._fetcher.prefetch(
                [
                    c
                    for c in volume.contents
                    if not c.is_durable and c.state != "quarantined" and not self._fetcher.is_prefetching(c)
                ]
            )

    def _pull(self, row: VolumeRow, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        contents = self.contents(row)
        for content in contents:
            content.last_error = None
        self._fetcher.prefetch([content for content in contents if not content.is_durable])
        best, since = -1, time.monotonic()
        while not cancelled():
            step = self._progress(row, contents)
            yield step
            if step.done:
                return
            self._store.check()
            if step.present + step.verified > best:
                best, since = step.present + step.verified, time.monotonic()
            self._check_pull(row, contents, time.monotonic() - since)
            time.sleep(_LOOK)

    def _progress(self, row: VolumeRow, contents: Sequence[Content]) -> Progress:
        present, durable = sum(c.present for c in contents), sum(c.durable for c in contents)
        verified = sum(c.verified for c in contents)
        is_done = all(c.is_durable and c.is_verified for c in contents)
        return Progress(row.reference, row.size, present, durable, verified, self.rates.of(contents), is_done)

    def _check_pull(self, row: VolumeRow, contents: Sequence[Content], silence: float) -> None:
        for content in contents:
            if content.state == "quarantined":
                raise content.last_error or Mismatch(f"layer {content.digest}: {content.reason}")
            is_left = content.present < content.length and not self._fetcher.is_prefetching(content)
            if content.last_error and is_left:
                raise content.last_error
        if silence > self._stall:
            error = next((c.last_error for c in contents if c.last_error), None)
            raise error or Unreachable(
                f"{row.reference}: no byte came for {self._stall:g} s", "see whether the registry answers"
            )

    def _check_unused(self, row: VolumeRow) -> None:
        users = self.users(row.id)
        if users:
            raise InUse(f"model {row.reference}: in use by {', '.join(users)}", "end those first")
        mounted = self._mounted_volume(row.id)
        if mounted:
            try:
                self._release(mounted)
            except InUse as failure:
                who = ", ".join(holders(self._table.path(row.id))) or failure.message
                raise InUse(
                    f"model {row.reference}: in use by {who}", "end the programs that have files of it open"
                ) from failure

    def _remove(self, row: VolumeRow) -> int:
        with self._lock:
            self._rows.pop(row.id, None)
            needed = {number for other in self._rows.values() for number in other.contents}
        orphans = [self._store.content(number) for number in set(row.contents) - needed]
        self._fetcher.forget(orphans)
        self._store.catalog.remove_volume(row.id)
        self._opener.image_path(row.id).unlink(missing_ok=True)
        freed = sum(self._store.remove(content) for content in orphans)
        log.info("remove volume=%s reference=%s freed=%d", row.id, row.reference, freed)
        return freed

    def _release(self, volume: Volume) -> None:
        self._table.release(volume.id)
        needed = {content.id for other in self._table.mounted() for content in other.contents}
        if not self._pulling.get(volume.id):
            self._fetcher.forget([content for content in volume.contents if content.id not in needed])

    def _release_if_closed(self, volume: Volume) -> None:
        """What nobody asked to go may stay: `rm` names who has files of it open."""
        try:
            self._release(volume)
        except InUse as failure:
            log.info("keep volume=%s reason=%r", volume.id, failure.message)

    def _mounted_volume(self, volume: str) -> Volume | None:
        return next((mounted for mounted in self._table.mounted() if mounted.id == volume), None)

    def _forget_lost_places(self) -> None:
        """Folders that are no longer mounts: the machine was rebooted, or somebody unmounted them by hand."""
        points = {entry.mount_point for entry in mounts.mountinfo()}
        for directory in self._store.catalog.placed():
            if directory not in points:
                log.warning("unplace directory=%s reason='no longer mounted'", directory)
                self._store.catalog.unplace(directory)
