"""The volumes there are, and those being opened or removed: each model is one of these at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

from modelvold.errors import Mismatch, NotFound, NotYet
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest
from modelvold.oci.reference import Repository
from modelvold.store.catalog import VolumeRow
from modelvold.store.store import Store
from modelvold.volume.opener import Opener, volume_id

log = logging.getLogger(__name__)

#: Openings under way; each is documents, headers and small files only.
_OPENERS = 8


class Openings:
    """Its rows are the catalog's. Entering sweeps what an end in the middle of an opening or a removal has left."""

    def __init__(self, store: Store, opener: Opener) -> None:
        self._store = store
        self._opener = opener
        self._lock = threading.Lock()  # guards the three tables below
        self._rows: dict[str, VolumeRow] = {}
        self._opening: dict[str, Future[VolumeRow]] = {}
        self._leaving: set[str] = set()
        self._threads = ThreadPoolExecutor(_OPENERS, thread_name_prefix="open")

    def __enter__(self) -> Self:
        self._rows = {row.id: row for row in self._store.catalog.volumes()}
        named = {number for row in self._rows.values() for number in row.contents}
        for content in self._store.contents():
            if content.id not in named:
                log.warning("sweep content=%s reason='no volume names it'", content.digest)
                self._store.remove(content)
        self._opener.sweep(set(self._rows))
        return self

    def __exit__(self, *_: object) -> None:
        self._opener.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def rows(self) -> list[VolumeRow]:
        with self._lock:
            return list(self._rows.values())

    def row(self, volume: str) -> VolumeRow:
        """Raises NotFound, and NotYet while it is being removed."""
        with self._lock:
            row, is_leaving = self._rows.get(volume), volume in self._leaving
        if row is None:
            raise NotFound(f"volume {volume}: not in the store", "remove the image and pull it again")
        if is_leaving:
            raise NotYet(f"model {row.reference}: it is being removed", "ask for it again in a moment")
        return row

    def begin(
        self, repository: Repository, original: Digest, reference: str, manifest: Manifest | None = None
    ) -> Future[VolumeRow]:
        """The row of this model, made if it is new; who asks meanwhile joins. `manifest` is the model's, where it is at hand.

        Raises NotYet while it is being removed, Mismatch where a layer is in quarantine.
        """
        volume = volume_id(repository, original)
        with self._lock:
            is_known = volume in self._rows
            opening = self._opening.get(volume)
            if not is_known and opening is None:
                opening = self._threads.submit(self._open, repository, original, reference, manifest)
                self._opening[volume] = opening
        if opening is not None:
            return opening
        known: Future[VolumeRow] = Future()
        known.set_result(self._asked_as(self.row(volume), reference))
        return known

    @contextmanager
    def leaving(self, row: VolumeRow) -> Iterator[None]:
        """While the block lasts nobody else gets the volume."""
        with self._lock:
            self._leaving.add(row.id)
        try:
            yield
        finally:
            with self._lock:
                self._leaving.discard(row.id)

    def forget(self, row: VolumeRow) -> None:
        with self._lock:
            self._rows.pop(row.id, None)

    def use(self, volumes: Sequence[str], when: int) -> None:
        """They were in use at `when`, in seconds since 1970."""
        self._store.catalog.use(volumes, when)
        with self._lock:
            for volume in volumes:
                if volume in self._rows:
                    self._rows[volume] = replace(self._rows[volume], used=when)

    def pin(self, row: VolumeRow, *, is_pinned: bool) -> None:
        self._store.catalog.pin(row.id, is_pinned=is_pinned)
        with self._lock:
            if row.id in self._rows:
                self._rows[row.id] = replace(self._rows[row.id], is_pinned=is_pinned)

    def _open(self, repository: Repository, original: Digest, reference: str, manifest: Manifest | None) -> VolumeRow:
        try:
            self._store.check()
            found = manifest or self._opener.document(repository, original)
            row = self._opener.open(repository, found, reference)
            with self._lock:
                self._rows[row.id] = row
            return row
        finally:
            with self._lock:
                del self._opening[volume_id(repository, original)]

    def _asked_as(self, row: VolumeRow, reference: str) -> VolumeRow:
        """The row, which from now on is known by the reference it was asked for last."""
        for content in (self._store.content(number) for number in row.contents):
            if content.state == "quarantined":
                raise Mismatch(
                    f"{reference}: layer {content.digest} is in quarantine: {content.reason}",
                    "remove the model with `modelvold rm`, mend it at the registry, pull again",
                )
        if row.reference == reference:
            return row
        self._store.catalog.set_reference(row.id, reference)
        with self._lock:
            named = self._rows[row.id] = replace(self._rows.get(row.id, row), reference=reference)
        return named
