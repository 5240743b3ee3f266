"""Folders where an operator has a model shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from modelvold.errors import InUse, InvalidInput, NotFound, Refused
from modelvold.mount.places import Places
from modelvold.mount.table import MountTable
from modelvold.store.catalog import Catalog

log = logging.getLogger(__name__)


class Placing:
    """`lending` is held while a volume is mounted and recorded as used; `mounted(volume)` is where it is mounted."""

    def __init__(
        self,
        catalog: Catalog,
        places: Places,
        lending: AbstractContextManager[object],
        mounted: Callable[[str], Path],
    ) -> None:
        self._catalog = catalog
        self._places = places
        self._lending = lending
        self._mounted = mounted

    def check(self, directory: Path) -> None:
        """Raises Refused, InvalidInput where nothing can be shown there."""
        if str(directory) in self._catalog.placed() or self._places.is_taken(directory):
            raise Refused(f"directory {directory}: something is mounted there", f"`modelvold umount {directory}` first")
        if not directory.is_absolute() or not directory.is_dir() or directory.resolve() != directory:
            raise InvalidInput(
                f"directory {directory}: not an existing folder named by its real, absolute path", "create it first"
            )

    def place(self, volume: str, directory: Path) -> None:
        """Recorded first: what is recorded and not shown is forgotten at the next start, what is shown and not recorded would
        be nobody's to take away."""
        with self._lending:
            path = self._mounted(volume)
            self.check(directory)
            self._catalog.place(str(directory), volume)
            try:
                self._places.show(path, directory)
            except OSError as error:
                self._catalog.unplace(str(directory))
                raise InvalidInput(
                    f"directory {directory}: {error.strerror}", "it must be an empty folder that you may write"
                ) from error
        log.info("place volume=%s directory=%s", volume, directory)

    def unplace(self, directory: Path) -> str:
        """The volume that was shown there. Raises NotFound, InUse."""
        volume = self._catalog.placed().get(str(directory))
        if volume is None:
            raise NotFound(f"directory {directory}: no model is mounted there by modelvold", "see `modelvold status`")
        try:
            self._places.hide(directory)
        except OSError as error:
            if self._places.is_taken(directory):
                raise InUse(
                    f"directory {directory}: {error.strerror}", "end the programs that have files of it open"
                ) from error
        self._catalog.unplace(str(directory))
        log.info("unplace volume=%s directory=%s", volume, directory)
        return volume

    def renew(self, volume: str, path: Path) -> None:
        """It was mounted anew at `path`, and is shown so from now on."""
        for directory in [Path(where) for where, what in self._catalog.placed().items() if what == volume]:
            try:
                self._places.renew(path, directory)
            except OSError as error:
                log.error("renew directory=%s failed error=%s", directory, error)  # noqa: TRY400

    def renew_others(self, table: MountTable) -> None:
        """Folders that show something else than what is mounted now: the mount that they had is dead."""
        for where, volume in self._catalog.placed().items():
            path = table.path(volume)
            try:
                if table.is_mounted(volume) and not self._places.shows(path, Path(where)):
                    self._places.renew(path, Path(where))
                    log.info("renew directory=%s volume=%s", where, volume)
            except OSError as error:
                log.error("renew directory=%s failed error=%s", where, error)  # noqa: TRY400 — the others are to be renewed all the same

    def forget_lost(self) -> None:
        """Folders where nothing is shown any more: the machine was rebooted, or somebody unmounted them by hand."""
        for directory in self._catalog.placed():
            if not self._places.is_taken(Path(directory)):
                log.warning("unplace directory=%s reason='no longer mounted'", directory)
                self._catalog.unplace(directory)
