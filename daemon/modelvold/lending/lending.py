"""The lending desk: volumes opened, mounted, given back.

A volume is *used* by snapshots, by folders where an operator placed it, and by processes that have its files open. Only an unused
one is unmounted or removed; who uses it is named.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from modelvold.errors import Failure, InUse, NotFound, NotYet
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.checking import Checking
from modelvold.lending.completing import Completing
from modelvold.lending.foresight import Foresight
from modelvold.lending.keeping import Keeping
from modelvold.lending.openings import Openings
from modelvold.lending.placing import Placing
from modelvold.lending.pulls import LOOK, Pulls
from modelvold.lending.rates import Rates
from modelvold.lending.report import Checked, Collected, Progress
from modelvold.lending.wrong import Wrong
from modelvold.linux.holders import holders
from modelvold.mount.backend import Volume
from modelvold.mount.places import Places
from modelvold.mount.table import MountTable
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference, Repository
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.opener import Opener

log = logging.getLogger(__name__)

#: Seconds that a consumer of a volume waits while it is mounted again, where that takes more than a mount.
_PATIENCE = 1.0


class Lending:
    """`prefetch`: whether a volume's bytes are fetched ahead of being read. `stall`: seconds without a byte after which a pull ends."""

    def __init__(
        self,
        store: Store,
        opener: Opener,
        fetcher: Fetcher,
        table: MountTable,
        places: Places,
        *,
        prefetch: bool,
        stall: float,
        keep: float | None = None,
    ) -> None:
        self._store = store
        self._opener = opener
        self._fetcher = fetcher
        self._table = table
        self._is_prefetching = prefetch
        self._users_of: Callable[[str], Sequence[str]] = lambda _: ()
        #: Held while a volume is mounted and recorded as used, and while one is found unused and taken away. Over mounts and the
        #: disk, never over the network.
        self.lending = threading.RLock()
        self._placing = Placing(store.catalog, places, self.lending, self.mounted)
        self.rates = Rates(store.contents)
        self._openings = Openings(store, opener)
        self._foresight = Foresight(store, fetcher, opener.tree)
        self._pulls = Pulls(store, fetcher, self.rates, self._foresight.start, stall=stall)
        self._completing = Completing(self._complete, self._pulls.progress)
        self._checking = Checking(store, fetcher, stall=stall)
        self.wrong = Wrong(
            table,
            lambda volume: opener.tree(volume.id),
            lambda volume: self._placing.renew(volume, table.path(volume)),
        )
        self.keeping = Keeping(
            store, fetcher, table, self, self.wrong, keep=keep, prefetch=self._foresight.start if prefetch else None
        )

    def __enter__(self) -> Self:
        self._openings.__enter__()
        volumes = [self.volume(row) for row in self._openings.rows()]
        missing = {volume.id: [segment for segment in volume.segments if not segment.present] for volume in volumes}
        self._table.adopt(volumes)
        self._placing.forget_lost()
        self.rates.__enter__()
        self._foresight.__enter__()
        self._completing.__enter__()
        self.keeping.__enter__()
        self._placing.renew_others(self._table)
        self.wrong.adopt([(volume, missing[volume.id]) for volume in self._table.mounted()])
        for volume in self._table.mounted():
            self._start_prefetch(volume)
        return self

    def __exit__(self, *_: object) -> None:
        self.keeping.__exit__(*_)
        self.wrong.close()
        self._completing.__exit__(*_)
        self._foresight.__exit__(*_)
        self.rates.__exit__(*_)
        self._openings.__exit__(*_)

    def ask_users_of(self, users_of: Callable[[str], Sequence[str]]) -> None:
        """`users_of(volume)` names the snapshots that stand on it: the room above knows."""
        self._users_of = users_of

    # -- for snapshots (snapshot.Volumes)

    def open(self, repository: Repository, original: Digest, reference: str, wait: float) -> str:
        """The volume's id, opened and ready to be mounted, or NotYet after `wait` seconds, and the work goes on."""
        self._store.check()
        until = time.monotonic() + wait
        opening = self._openings.begin(repository, original, reference)
        if not _is_done(opening, wait):
            raise NotYet(
                f"model {reference}: still being opened after {wait:g} s",
                "the work goes on: pull again, see `modelvold status`",
            )
        row = opening.result()
        if not self._is_ready(row):
            self._completing.wait(row, max(0.0, until - time.monotonic()))
        return row.id

    def mounted(self, volume_id: str) -> Path:
        """See snapshot.Volumes. To be used while `lending` is held, or by a path that may go again."""
        row = self._openings.row(volume_id)
        if not self._is_ready(row):
            self._completing.wait(row, _PATIENCE)
        volume = self.volume(row)
        path = self._table.ensure(volume)
        self._start_prefetch(volume)
        return path

    def restore(self, volumes: Iterable[str]) -> None:
        """After a reboot: these are mounted again, from what the catalog and the disk have, without a registry. Where bytes must
        be here first and are not, that is begun."""
        for row in [row for row in self._openings.rows() if row.id in set(volumes)]:
            try:
                if self._is_ready(row):
                    self.mounted(row.id)
                else:
                    self._completing.start(row)
            except Failure as failure:
                log.warning("restore volume=%s failed reason=%r", row.id, str(failure))
        self._placing.renew_others(self._table)

    def renew(self, volumes: Sequence[str]) -> None:
        """The mounts of these are dead: they are mounted anew, for whoever comes from now on."""
        for volume in volumes:
            try:
                if self._table.is_mounted(volume):
                    self._table.renew(volume)
                else:  # its process died again before it was mounted anew
                    self.mounted(volume)
            except Failure as failure:
                log.error("renew volume=%s failed reason=%r", volume, str(failure))  # noqa: TRY400
        self._placing.renew_others(self._table)

    def unmount_unused(self, in_use: set[str]) -> None:
        placed = set(self._store.catalog.placed().values())
        pinned = {row.id for row in self.rows() if row.is_pinned}
        for volume in self._table.mounted():
            if volume.id not in in_use | placed | pinned:
                self._release_if_closed(volume)

    # -- for operators (rpc.control's Operator, with `report` beside it)

    def mount(self, reference: str, directory: Path, cancelled: Callable[[], bool]) -> Iterator[Progress | VolumeRow]:
        """Shows a model at `directory`, an existing folder. Where its bytes must be here first, a Progress now and then until
        they are; then what is shown, unless it was `cancelled`. Raises InvalidInput, Refused, and whatever opening raises."""
        asked = Reference.parse(reference)
        self._placing.check(directory)
        row = self._resolve_and_open(asked, cancelled)
        if not self._is_ready(row):
            work = self._completing.start(row)
            last = None
            while not work.done():
                if cancelled():
                    return
                if (step := self._pulls.progress(row)) != last:
                    yield step
                last = step
                wait([work], LOOK)
            work.result()
            if (step := self._pulls.progress(row)) != last:
                yield step
        self._placing.place(row.id, directory)
        yield row

    def unmount(self, directory: Path) -> None:
        """Raises NotFound, InUse."""
        volume = self._placing.unplace(directory)
        with self.lending:
            if not self.users(volume) and (mounted := self._mounted_volume(volume)):
                self._release_if_closed(mounted)

    def pull(self, reference: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """Makes every byte present, durable and verified; the last Progress is done. Raises what keeps it from that."""
        yield from self._pulls.run(self._resolve_and_open(Reference.parse(reference), cancelled), cancelled)

    def remove(self, reference: str) -> int:
        """Forgets a model and frees its bytes. Raises NotFound, or InUse naming who uses it. Returns the bytes freed."""
        rows = self._named(reference)
        for row in rows:
            if row.is_pinned:
                raise InUse(f"model {row.reference}: it is pinned", f"`modelvold unpin {row.reference}` first")
        return self._give_up(rows)

    def give_up(self, row: VolumeRow) -> int:
        """See keeping.Lent."""
        return self._give_up([row])

    def pin(self, reference: str) -> None:
        """It is neither evicted nor forgotten, until `unpin`. Raises NotFound."""
        for row in self._named(reference):
            self._openings.pin(row, is_pinned=True)

    def unpin(self, reference: str) -> None:
        for row in self._named(reference):
            self._openings.pin(row, is_pinned=False)

    def collect(self, dry_run: bool) -> list[Collected]:
        """See Keeping."""
        return self.keeping.collect(dry_run)

    def verify(self, reference: str | None, repair: bool, cancelled: Callable[[], bool]) -> Iterator[Checked]:
        """Reads what is durable of a model, or of all, again (`lending.checking`). Raises NotFound."""
        rows = self._named(reference) if reference else self._openings.rows()
        numbers = dict.fromkeys(number for row in rows for number in row.contents)
        contents = [self._store.content(number) for number in numbers]
        yield from self._checking.run(reference or "", contents, repair=repair, cancelled=cancelled)

    # -- what there is

    def rows(self) -> list[VolumeRow]:
        return self._openings.rows()

    def used(self, volumes: Sequence[str], when: int) -> None:
        """See keeping.Lent."""
        self._openings.use(volumes, when)

    def find(self, reference: str | None) -> list[VolumeRow]:
        """The volumes that a reference, a manifest's digest or a volume's id names; all of them without one."""
        rows = self._openings.rows()
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
        pulling = ["a pull"] if self._pulls.is_running(volume) else []
        return [f"snapshot {key}" for key in self._users_of(volume)] + placed + pulling

    # -- how

    def _named(self, reference: str) -> list[VolumeRow]:
        rows = self.find(reference)
        if not rows:
            raise NotFound(f"model {reference}: not in the store", "see `modelvold status`")
        return rows

    def _give_up(self, rows: Sequence[VolumeRow]) -> int:
        with ExitStack() as leaving:
            for row in rows:
                leaving.enter_context(self._openings.leaving(row))
                self._completing.cancel(row)
            with self.lending:
                for row in rows:
                    self._check_unused(row)
                freed = sum(self._remove(row) for row in rows)
        for row in rows:
            self.wrong.forget(row.id)
        return freed

    def _resolve_and_open(self, asked: Reference, cancelled: Callable[[], bool]) -> VolumeRow:
        """Raises NotYet once `cancelled()`; the work goes on."""
        manifest = self._opener.resolve(asked)
        opening = self._openings.begin(asked.repository, manifest.digest, str(asked), manifest)
        while not _is_done(opening, LOOK):
            if cancelled():
                raise NotYet(f"model {asked}: given up while it was opened", "ask for it again")
        return opening.result()

    def _is_ready(self, row: VolumeRow) -> bool:
        return self._table.is_mounted(row.id) or self._table.is_ready(self.volume(row))

    def _complete(self, row: VolumeRow, cancelled: Callable[[], bool]) -> None:
        """See Completing. Raises NotYet where the volume is being removed meanwhile."""
        for _ in self._pulls.run(self._openings.row(row.id), cancelled):
            pass
        if not cancelled():
            self._table.make_ready(self.volume(row), cancelled)

    def _start_prefetch(self, volume: Volume) -> None:
        if self._is_prefetching:
            self._foresight.start(
                volume.id,
                [
                    c
                    for c in volume.contents
                    if not c.is_durable and c.state != "quarantined" and not self._fetcher.is_prefetching(c)
                ],
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
        volume = self.volume(row)
        with self._opener.settling:
            self._openings.forget(row)
            self._foresight.forget(row.id)
            self._table.forget(volume)
            gone = set(self._store.catalog.remove_volume(row.id))
            self._opener.image_path(row.id).unlink(missing_ok=True)
            orphans = {content.id: content for content in volume.contents if content.id in gone}
            self._fetcher.forget(list(orphans.values()))
            freed = sum(self._store.remove(content) for content in orphans.values())
        log.info("remove volume=%s reference=%s freed=%d", row.id, row.reference, freed)
        return freed

    def _release(self, volume: Volume) -> None:
        self._table.release(volume.id)
        if not self._pulls.is_running(volume.id):
            self._foresight.forget(volume.id)
        pulled = [row for row in self._openings.rows() if self._pulls.is_running(row.id)]
        needed = {content.id for other in self._table.mounted() for content in other.contents}
        needed |= {number for row in pulled for number in row.contents}
        self._fetcher.forget([content for content in volume.contents if content.id not in needed])

    def _release_if_closed(self, volume: Volume) -> None:
        """What nobody asked to go may stay: `rm` names who has files of it open."""
        try:
            self._release(volume)
        except InUse as failure:
            log.info("keep volume=%s reason=%r", volume.id, failure.message)

    def _mounted_volume(self, volume: str) -> Volume | None:
        return next((mounted for mounted in self._table.mounted() if mounted.id == volume), None)


def _is_done(future: Future[VolumeRow], seconds: float) -> bool:
    """Whether it is within so many seconds. (`result` would tell its own time-out and one that the work raised alike.)"""
    return bool(wait([future], seconds).done)
