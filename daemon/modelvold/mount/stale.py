"""Stale pages: what the kernel's page cache still has of segments whose bytes were wrong and are gone.

EROFS keeps pages when a segment is truncated below it, so they are dropped by hand, in two steps:

    segments truncated ──▶ pages that nobody maps: fadvise ──▶ pages that one process maps: paged out of it (mount.mapped)
                       ──▶ what is left is *suspect*: cached since then without a break

A suspect page is stale if it is valid, that is, if a read would give its bytes: two processes map it, or one twice, or it is
locked in memory, or held for a transfer to a device. Then the volume is *poisoned*: it is mounted anew, so that new consumers
have an empty page cache, and those that keep the pages in memory are named, for they must be restarted. They, and whoever reads by
the old mount, go on with the wrong bytes. Suspect pages that are not valid are being read just now: such a read waits for bytes
that are right by then, or ends with EIO. But nobody can tell when it began, so they are looked at again (`recheck`), like the
stale ones. With the last suspect page the volume is poisoned no more; an old mount is kept within reach as long as somebody has
it, for there may be wrong bytes once more.

A volume that is no EROFS mount has no such pages: into the folders of the backend `directory` comes what was verified alone.

Files are opened and never read here (rule 4). One drop or recheck at a time; neither is quick, and both wait for a program. A
daemon that ends forgets what was poisoned: what is mounted then has been mounted anew.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from modelvold.errors import Failing
from modelvold.linux import mounts
from modelvold.mount.backend import Volume
from modelvold.mount.mapped import Found, Mapped
from modelvold.mount.pieces import Piece, let_go, merged
from modelvold.mount.table import MountTable
from modelvold.mount.where import pieces_of
from modelvold.store.content import content_of
from modelvold.store.segment import Segment
from modelvold.volume.tree import Tree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Poisoned:
    """`size` bytes of a volume, by its id, are wrong in the page cache of those who had it mounted before; it was mounted anew.
    `names`, never none, are the processes that keep them there, as `name (pid)`."""

    volume: str
    size: int
    names: tuple[str, ...]


@dataclass(slots=True)
class _Shown:
    """One of a volume's mounts, with a page cache of its own. `root` is a descriptor of it that hinders no unmounting."""

    root: int
    device: int
    is_old: bool = False
    is_held: bool = True
    suspects: list[Piece] = field(default_factory=list)
    stale: int = 0
    names: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        return not self.suspects and not (self.is_old and self.is_held)


class Stale:
    """`tree_of` gives a volume's tree, whose layers are its contents in order. `on_renewed` is told of volumes, by id, that were
    mounted anew, by the thread that had it done, no lock held: who shows the old mount elsewhere shows the new one there.
    Leaving the `with` lets go of old mounts."""

    def __init__(
        self,
        table: MountTable,
        tree_of: Callable[[Volume], Tree],
        on_renewed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._table = table
        self._tree_of = tree_of
        self._on_renewed = on_renewed
        self._renewed: list[str] = []  # and not told yet
        self._mapped = Mapped()
        self._working = (
            threading.Lock()
        )  # guards _shown, what is in it, and _renewed; held over system calls and the program
        self._shown: dict[str, list[_Shown]] = {}  # by volume
        self._poisoned: dict[str, Poisoned] = {}  # as the last look found it; read without the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for volume in list(self._shown):
            self.forget(volume)

    def poisoned(self, volume: str) -> Poisoned | None:
        """As it was seen last. Quick."""
        return self._poisoned.get(volume)

    def names(self, volume: str) -> tuple[str, ...]:
        """Who must be restarted, likewise; nobody where it is not poisoned."""
        found = self.poisoned(volume)
        return found.names if found else ()

    @property
    def is_to_recheck(self) -> bool:
        return bool(self._shown)

    def drop(self, volume: Volume, segments: Sequence[Segment]) -> Poisoned | None:
        """Of `segments`, which were found wrong and truncated, no page stays, or the volume is poisoned. What has come in their
        place may go with them, so call it before that. Raises NotFound where the volume has left the store."""
        with self._looking():
            device = self._device(volume)
            if device or volume.id in self._shown:
                pieces = list(pieces_of(self._tree_of(volume), volume, segments))
                self._hold(volume, device)
                for each in self._shown.get(volume.id, []):
                    each.suspects = merged([*each.suspects, *pieces])
                self._look_at(volume.id)
        return self.poisoned(volume.id)

    def adopt(self, volume: Volume, missing: Sequence[Segment]) -> None:
        """After a start, of a volume that was found mounted and segments of it that were missing then: whether the daemon before
        dropped what it had truncated, nobody knows. What was found wrong is dropped. Of what was never judged pages go as far as they
        can, for what comes in their place may be other bytes: where they cannot, new consumers get a new mount, and nobody is named,
        for it may be the same."""
        wrong = [segment for segment in missing if content_of(segment).reason]
        if wrong:
            self.drop(volume, wrong)
        rest = [segment for segment in missing if not content_of(segment).reason and segment.digest is None]
        with self._looking():
            if rest and self._device(volume) and self._has_stale(volume, rest):
                self._renew(volume.id)

    def recheck(self) -> list[Poisoned]:
        """Looks again at all suspect pages, and at who has old mounts. What is still poisoned."""
        with self._looking():
            for volume in list(self._shown):
                self._look_at(volume)
        return list(self._poisoned.values())

    def forget(self, volume: str) -> None:
        """The volume leaves the store."""
        with self._working:
            for each in self._shown.pop(volume, []):
                os.close(each.root)
            self._poisoned.pop(volume, None)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        with self._working:
            yield
            renewed, self._renewed = self._renewed, []
        for volume in renewed:
            self._on_renewed(volume)

    def _has_stale(self, volume: Volume, segments: Sequence[Segment]) -> bool:
        """When what can be dropped is."""
        look = _Shown(mounts.clone(self._table.path(volume.id)), 0)
        try:
            look.suspects = list(pieces_of(self._tree_of(volume), volume, segments))
            self._look(volume.id, look)
        finally:
            os.close(look.root)
        return look.stale > 0

    def _device(self, volume: Volume) -> str:
        """Of the EROFS mount that new consumers have; empty where there is none."""
        target = str(self._table.path(volume.id))
        found = [e.device for e in mounts.mountinfo() if e.mount_point == target and e.fs_type == "erofs"]
        return found[-1] if found else ""

    def _hold(self, volume: Volume, device: str) -> None:
        """That mount is among what is looked at, unless it has gone meanwhile."""
        if not device:
            return
        root = mounts.clone(self._table.path(volume.id))
        found = os.fstat(root).st_dev
        shown = self._shown.setdefault(volume.id, [])
        if f"{os.major(found)}:{os.minor(found)}" != device or any(each.device == found for each in shown):
            os.close(root)
        else:
            shown.append(_Shown(root, found))

    def _look_at(self, volume: str) -> None:
        for each in self._shown.get(volume, []):
            self._look(volume, each)
            if each.stale and not each.is_old:
                each.is_old = True
                if self._is_current(volume, each):
                    self._renew(volume)
        self._settle(volume)

    def _is_current(self, volume: str, shown: _Shown) -> bool:
        try:
            return self._table.path(volume).stat().st_dev == shown.device
        except FileNotFoundError:  # it is not mounted
            return False

    def _renew(self, volume: str) -> None:
        try:
            self._table.renew(volume)
            self._renewed.append(volume)
        except Failing as failure:
            log.error("renew volume=%s failed reason=%r", volume, str(failure))  # noqa: TRY400 — it is mounted no more

    def _look(self, volume: str, shown: _Shown) -> None:
        """Drops what can be dropped of its suspects; what then is left of them."""
        try:
            shown.suspects = merged(let_go(shown.root, shown.suspects))
            if not shown.suspects and not shown.is_old:
                found = Found((), 0, (), 0, held=True)
            else:
                found = self._mapped.page_out(shown.root, volume, shown.suspects)
        except (OSError, ValueError) as error:
            log.error("look for stale pages volume=%s failed error=%s", volume, error)  # noqa: TRY400
            found = Found(tuple(shown.suspects), sum(p.end - p.start for p in shown.suspects), (), 0, held=True)
        shown.suspects, shown.stale, shown.is_held = list(found.cached), found.stale, found.held
        shown.names = (*found.processes, *([f"{found.others} others"] if found.others else []))

    def _settle(self, volume: str) -> None:
        """Lets go of what is done with, and says what the volume is now."""
        shown = self._shown.pop(volume, [])
        left = [each for each in shown if not each.is_done]
        for each in shown:
            if each.is_done:
                os.close(each.root)
        if left:
            self._shown[volume] = left
        size, before = sum(each.stale for each in left), self._poisoned.get(volume)
        if size:
            names = tuple(dict.fromkeys(name for each in left for name in each.names))
            after = Poisoned(volume, size, names or ("a process that could not be found",))
            self._poisoned[volume] = after
            if after != before:
                log.error("poisoned volume=%s bytes=%d names=%r", volume, size, after.names)
        elif before:
            del self._poisoned[volume]
            log.info("poisoned no more volume=%s", volume)
