"""Wrong bytes that somebody may have read: their pages go from every volume that shows them (`mount.stale`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from modelvold.errors import Failure
from modelvold.mount.backend import Volume
from modelvold.mount.stale import Stale
from modelvold.mount.table import MountTable
from modelvold.store.content import content_of
from modelvold.store.segment import Segment
from modelvold.volume.tree import Tree

log = logging.getLogger(__name__)

_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class Wrong:
    """`on_renewed` is told of volumes that were mounted anew for it."""

    def __init__(self, table: MountTable, tree_of: Callable[[Volume], Tree], on_renewed: Callable[[str], None]) -> None:
        self._table = table
        self._stale = Stale(table, tree_of, on_renewed)
        self._pause = self._next = 0.0
        self.names = self._stale.names
        self.forget = self._stale.forget

    def close(self) -> None:
        self._stale.__exit__(None, None, None)

    def adopt(self, missing: Sequence[tuple[Volume, Sequence[Segment]]]) -> None:
        """Once, of volumes found mounted: what was missing of them before anything was served."""
        for volume, segments in missing:
            self._try(volume, partial(self._table.drop_pages, volume, _other(segments)))
            self._try(volume, partial(self._stale.adopt, volume, segments))

    def drop(self, segments: Sequence[Segment]) -> None:
        """These were wrong, and are truncated; nothing has come in their place yet. Takes seconds where they are mapped."""
        self._pause = self._next = _SHORTEST_PAUSE
        for volume in self._table.mounted():
            its = [segment for segment in segments if content_of(segment) in volume.contents]
            if its:
                self._try(volume, partial(self._table.drop_pages, volume, its))
                self._try(volume, partial(self._stale.drop, volume, its))

    def recheck(self) -> None:
        """Looks again where something is left, soon at first and then once a minute: it looks at every process there is."""
        now = time.monotonic()
        if self._stale.is_to_recheck and now >= self._next:
            self._stale.recheck()
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next = time.monotonic() + self._pause

    def _try(self, volume: Volume, look: Callable[[], object]) -> None:
        """Whoever found the bytes wrong has more to do."""
        try:
            look()
        except (OSError, Failure) as error:
            log.error("drop pages volume=%s failed reason=%r", volume.id, str(error))  # noqa: TRY400


def _other(missing: Sequence[Segment]) -> list[Segment]:
    """Those of which other bytes may come than somebody has read: found wrong, or never judged."""
    return [segment for segment in missing if content_of(segment).reason or segment.digest is None]
