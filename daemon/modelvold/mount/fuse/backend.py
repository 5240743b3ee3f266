"""The fuse backend: volumes through a process of its own, which reads segment files and asks the gate for what is missing.

    <run>/fuse/<volume>     the process's one mount, a folder for each volume (`mount.fuse.process`)
    <run>/volumes/<volume>  a bind of that folder, or a link to it where there is no privilege

Daemon and process outlive each other (`mount.fuse.link`). Where a process has died its mount is dead, and what was bound from it:
another one is started, volumes are mounted anew for new consumers, and those that had the dead mount are *stranded* (`status` names
them). A volume that is complete leaves FUSE for new consumers, where the kernel can show it by EROFS (`beside`).
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from modelvold.errors import Failing
from modelvold.linux import mounts
from modelvold.linux.mounts import MountEntry
from modelvold.linux.strands import elsewhere
from modelvold.mount.backend import Backend, Known, Volume, take_away, tolerated
from modelvold.mount.directory import remove_tree
from modelvold.mount.erofs import Complete
from modelvold.mount.fuse import mounting
from modelvold.mount.fuse.line import Line, Place, kill
from modelvold.mount.fuse.questions import FuseQuestions
from modelvold.mount.fuse.wire import ALL, Welcome
from modelvold.mount.gate import Gate
from modelvold.mount.places import Places
from modelvold.mount.where import pieces_of
from modelvold.store.segment import Segment
from modelvold.volume.tree import Tree

log = logging.getLogger(__name__)

#: How often, and how many seconds apart, it is tried whether all files are closed.
_TRIES, _MOMENT = 5, 0.1


class Fuse(Backend):
    """`tree_of` gives a volume's tree. `deadline`: seconds that a read waits while there is no daemon. `on_lost` is told of mounted
    volumes, by id, whose process has died, when there is another one: they are to be renewed. By a thread of ours."""

    name = "fuse"
    is_lazy = True

    def __init__(
        self,
        gate: Gate,
        questions: FuseQuestions,
        place: Place,
        places: Places,
        tree_of: Callable[[Volume], Tree],
        *,
        deadline: float,
        beside: Complete | None,
        on_lost: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._gate = gate
        questions.on_withdrawn = gate.withdraw
        self._questions = questions
        self._mount = place.mount
        self._places = places
        self._tree_of = tree_of
        self._beside = beside
        self._on_lost = on_lost
        self._line = Line(place, questions, deadline=deadline, on_parted=gate.forget_waiting, on_again=self._on_again)
        self._served: dict[str, Volume] = {}  # by the process
        self._outgrown: set[str] = set()  # shown by EROFS to new consumers

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        try:
            welcome = self._line.attach()
        except OSError as error:
            raise Failing(
                f"fuse mount {self._mount}: {error.strerror or error}", "see the log, and `modelvold doctor`"
            ) from error
        by_erofs = list(self._beside.adopt(known)) if self._beside else []
        self._outgrown = {volume.id for volume in by_erofs}
        for each in known:
            is_here = each.volume.id not in self._outgrown and self._is_at(each.target)
            if is_here or each.volume.id in welcome.volumes:
                self._gate.watch(each.volume.id, each.volume.segments)
                with tolerated(each.volume.image):
                    self._show(each.volume)
        rest = [each for each in known if each.volume.id in self._served and each.volume.id not in self._outgrown]
        adopted = [*by_erofs, *(each.volume for each in rest if self._readopt(each))]
        ids = {volume.id for volume in adopted}
        self._hide_others({*welcome.volumes, *self._served} - ids)
        with suppress(OSError):  # it has ended already, and what is adopted is renewed when there is another one
            self._line.link.serve()
        self._gate.guard()
        return adopted

    def is_ready(self, volume: Volume) -> bool:
        """Bytes that are not verified are shown to the source alone that they come from (rule 6), not to those who share them."""
        return all(content.source or content.is_verified for content in volume.contents)

    def mount(self, volume: Volume, target: Path) -> str:
        if self._beside and self._beside.is_ready(volume):
            note = self._beside.mount(volume, target)
            self._outgrown.add(volume.id)
            return note
        self._gate.watch(volume.id, volume.segments)
        self._show(volume)
        self._places.show(self._folder(volume), target)
        self._outgrown.discard(volume.id)
        return ""

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        """What is bound elsewhere, with no file open, is stale from then on: it has no user any more."""
        by_erofs = self._beside if volume.id in self._outgrown else None
        if by_erofs:
            by_erofs.unmount(volume, target, others)
        else:
            self._places.hide(target)
        if volume.id in self._served:
            try:
                self._hide(volume)
            except OSError:
                if by_erofs:
                    by_erofs.mount(volume, target)
                else:
                    self._places.show(self._folder(volume), target)
                raise
            needed = {segment.inode for other in others for segment in other.segments}
            self._gate.unwatch([segment for segment in volume.segments if segment.inode not in needed])
        self._outgrown.discard(volume.id)

    def renew(self, volume: Volume, target: Path) -> str:
        """A link leads to where the volume is shown again, and needs no renewal. Dead mounts of it elsewhere in our mount namespace are
        replaced as well: containerd mounts an image volume once for a pod, and gives that to each container which it starts again."""
        if target.is_symlink():
            self._gate.watch(volume.id, volume.segments)
            self._show(volume)
            return ""
        note = super().renew(volume, target)
        for entry in mounts.mountinfo():
            is_its = entry.root == f"/{volume.id}" and self._is_lost(entry)
            if is_its and "idmapped" not in entry.options:
                with tolerated(entry.mount_point):
                    mounts.replace(target, Path(entry.mount_point))
                    log.info("renew mount=%s volume=%s", entry.mount_point, volume.id)
        return note

    def is_outgrown(self, volume: Volume) -> bool:
        return volume.id not in self._outgrown and self._beside is not None and self._beside.is_ready(volume)

    def asks(self, volume: str) -> bool:
        return volume not in self._outgrown

    def shown_by(self, volume: str) -> str:
        return self._beside.name if self._beside and volume in self._outgrown else self.name

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        """The process's mount reads ahead as far as it can: a read waits for what it asks for, and not for what is read ahead."""
        if self._beside and volume in self._outgrown:
            self._beside.read_ahead(volume, is_complete=is_complete)

    def drop_pages(self, volume: Volume, segments: Sequence[Segment]) -> None:
        if volume.id in self._served:
            pieces = pieces_of(self._tree_of(volume), volume, segments)
            self._line.link.drop(volume.id, [(piece.path, piece.start, piece.end) for piece in pieces])

    def stranded(self) -> Mapping[str, Sequence[str]]:
        return {root.removeprefix("/"): names for root, names in elsewhere(self._is_lost).items()}

    def forget(self, volume: Volume) -> None:
        remove_tree(volume)

    def close(self) -> None:
        """The process stays while it shows something."""
        self._line.close(is_left=bool(self._served))

    def _on_again(self, welcome: Welcome, is_new: bool) -> None:
        """A new process shows nothing yet, and what is mounted is dead; one that goes on is told what it may have missed."""
        if not is_new:
            self._hide_others(set(welcome.volumes) - set(self._served))
            for volume in list(self._served.values()):
                self._show(volume)
        self._line.link.serve()
        if is_new:
            self._on_lost([volume for volume in list(self._served) if volume not in self._outgrown])

    def _show(self, volume: Volume) -> None:
        """Once more where a content moved to the shared place between our naming and the process's opening. A process that hangs is
        killed: to bind what it does not show would hang as well."""
        link = self._line.link
        try:
            try:
                link.show(volume.id, volume.image, _folders(volume))
            except FileNotFoundError:
                link.show(volume.id, volume.image, _folders(volume))
        except TimeoutError:
            kill(link.pid)
            raise
        self._served[volume.id] = volume
        self._questions.tell(
            [(segment.inode, ALL if segment.is_open else segment.shown) for segment in volume.segments]
        )

    def _hide_others(self, volumes: set[str]) -> None:
        """They are not mounted; what somebody reads still is left."""
        for volume in volumes:
            self._served.pop(volume, None)
            with suppress(OSError):
                self._line.link.hide(volume)

    def _is_lost(self, entry: MountEntry) -> bool:
        """Whether it is a mount of a process that is ours no more."""
        return mounting.is_ours(entry) and entry.source == str(self._mount) and entry.device != self._line.device

    def _folder(self, volume: Volume) -> Path:
        return self._mount / volume.id

    def _hide(self, volume: Volume) -> None:
        """Raises OSError(EBUSY) while files of it are open; the kernel tells of a close a moment after it. A process that has died shows
        it no more."""
        for left in reversed(range(_TRIES)):
            try:
                self._line.link.hide(volume.id)
            except OSError as error:
                if error.errno == errno.EBUSY and left:
                    time.sleep(_MOMENT)
                    continue
                if error.errno not in {errno.ENOTCONN, errno.ECONNRESET}:
                    raise
            break
        self._served.pop(volume.id, None)

    def _is_at(self, target: Path) -> bool:
        """Whether a process's mount, be it dead, is what is bound there."""
        return target.is_symlink() or bool(mounting.device_at(target))

    def _readopt(self, known: Known) -> bool:
        """What is bound there is this process's, from now on if it was a dead one's."""
        target = known.target
        if target.is_symlink():
            return self._places.shows(self._folder(known.volume), target)
        device = mounting.device_at(target)
        if not device:
            return False
        if device != self._line.device:
            try:
                self.renew(known.volume, target)
            except OSError as error:
                log.warning("renew volume=%s failed error=%s", known.volume.id, error)
                take_away(target)
                return False
        return True


def _folders(volume: Volume) -> list[tuple[Path, int]]:
    return [(content.folder(), len(content.segments)) for content in volume.contents]
