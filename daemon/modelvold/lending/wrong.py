"""Wrong bytes that somebody may have read: their pages go from every volume that shows them (`mount.stale`)."""

from __future__ import annotations

import logging
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


class Wrong:
    """`on_renewed` is told of volumes that were mounted anew for it."""

    def __init__(self, table: MountTable, tree_of: Callable[[Volume], Tree], on_renewed: Callable[[str], None]) -> None:
        self._table = table
        self._stale = Stale(table, tree_of, on_renewed)
        self.names = self._stale.names
        self.forget = self._stale.forget

    def close(self) -> None:
        self._stale.__exit__(None, None, None)

    def adopt(self, missing: Sequence[tuple[Volume, Sequence[Segment]]]) -> None:
        """Once, of volumes found mounted: what was missing of them before anything was served."""
        for volume, segments in missing:
            self._try(volume, partial(self._stale.adopt, volume, segments))

    def drop(self, segments: Sequence[Segment]) -> None:
        """These were wrong, and are truncated; nothing has come in their place yet. Takes seconds where they are mapped."""
        for volume in self._table.mounted():
            its = [segment for segment in segments if content_of(segment) in volume.contents]
            if its:
                self._try(volume, partial(self._stale.drop, volume, its))

    def recheck(self) -> None:
        if self._stale.is_to_recheck:
            self._stale.recheck()

    def _try(self, volume: Volume, look: Callable[[], object]) -> None:
        """Whoever found the bytes wrong has more to do."""
        try:
            look()
        except (OSError, Failure) as error:
            log.error("drop pages volume=%s failed reason=%r", volume.id, str(error))  # noqa: TRY400
