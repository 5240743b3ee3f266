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
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from modelvold.errors import Failing
from modelvold.linux import mounts
from modelvold.linux.mounts import MountEntry
from modelvold.linux.strands import elsewhere
from modelvold.mount.backend import Backend, Known, Volume, take_away, tolerated
from modelvold.mount.directory import remove_tree
from modelvold.mount.erofs import Complete
from modelvold.mount.fuse import link as links
from modelvold.mount.fuse import mounting
from modelvold.mount.fuse.link import Link, Place
from modelvold.mount.fuse.questions import FuseQuestions
from modelvold.mount.fuse.wire import ALL, VERSION, Welcome
from modelvold.mount.gate import Gate
from modelvold.mount.places import Places
from modelvold.mount.where import pieces_of
from modelvold.store.segment import Segment
from modelvold.volume.tree import Tree

log = logging.getLogger(__name__)

#: Seconds between two tries to have a process again.
_PAUSE = 1.0
#: Seconds between two looks whether it is alive, and after which one that does not answer is killed: its readers wait for ever, and with
#: a dead mount they are at least told. Long, for a machine that swaps.
_LOOK, _HANGS = 10.0, 60.0


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
        self._questions = questions
        self._place = place
        self._places = places
        self._tree_of = tree_of
        self._deadline = deadline
        self._beside = beside
        self._on_lost = on_lost
        self._served: dict[str, Volume] = {}  # by the process
        self._outgrown: set[str] = set()  # shown by EROFS to new consumers
        self._lock = threading.Lock()  # guards _link, _process and _device
        self._link: Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._device = ""
        self._is_closing = threading.Event()
        self._revival: threading.Thread | None = None
        self._watch = threading.Thread(target=self._look, name="fuse-watch")

    # -- the process

    def _attach(self) -> Welcome:
        """To the process that a former daemon left, else to a new one. Raises OSError."""
        welcome = self._join_old()
        return welcome or self._join_new()

    def _join_old(self) -> Welcome | None:
        if not self._place.socket.exists():
            return None
        try:
            link, welcome = self._greet()
        except OSError as error:
            log.warning("no process that serves FUSE reason=%r", error.strerror or str(error))
            mounting.abort(self._place.mount)
            return None
        if welcome.version != VERSION or welcome.device != mounting.device_at(self._place.mount):
            log.warning("leave process=%d reason='of another version, or its mount is lost'", link.pid)
            link.close()
            return None
        self._join(link, welcome)
        log.info("adopt process=%d volumes=%d", link.pid, len(welcome.volumes))
        return welcome

    def _join_new(self) -> Welcome:
        self._take_away_mount()
        self._place.mount.mkdir(parents=True, exist_ok=True, mode=0o755)
        process = links.start(self._place)
        link, welcome = self._greet()
        with self._lock:
            self._process = process
        self._join(link, welcome)
        log.info("start process=%d device=%s", link.pid, welcome.device)
        return welcome

    def _greet(self) -> tuple[Link, Welcome]:
        link = Link(links.connect(self._place.socket), self._questions.on_ask, self._on_end)
        try:
            return link, link.greet(self._deadline)
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                links.kill(link.pid)
            link.close()
            raise

    def _join(self, link: Link, welcome: Welcome) -> None:
        """Raises OSError where it has ended already: nobody would hear of that."""
        with self._lock:
            if link.has_ended:
                raise ConnectionResetError(errno.ECONNRESET, "the process that serves FUSE has ended")
            self._link, self._device = link, welcome.device
        self._questions.join(link)

    def _take_away_mount(self) -> None:
        """Whatever is at its place. Who has it goes on having it, alive or dead."""
        mounting.take_away(self._place.mount)

    def _on_end(self, ended: Link) -> None:
        """The connection has ended: it has died, or hangs, or we close it."""
        with self._lock:
            if ended is not self._link:
                return
            self._link = None
        self._questions.part()
        self._gate.forget_waiting()
        if not self._is_closing.is_set():
            log.error("lost process=%d", ended.pid)
            self._revival = threading.Thread(target=self._revive, name="fuse-revive")
            self._revival.start()

    def _revive(self) -> None:
        """Until there is a process again, and all that it has to know is told."""
        device = self._device
        while not self._is_closing.is_set():
            try:
                self._reap()
                welcome = self._attach()
                if welcome.device == device:  # the connection alone had ended
                    self._hide_others(welcome, set(self._served))
                    for volume in list(self._served.values()):
                        self._show(volume)
                self._linked().serve()
            except OSError as error:
                log.error("no process that serves FUSE reason=%r", error.strerror or str(error))  # noqa: TRY400 — told, and tried again
                self._is_closing.wait(_PAUSE)
            else:
                if welcome.device != device:
                    self._on_lost([volume for volume in list(self._served) if volume not in self._outgrown])
                return

    def _look(self) -> None:
        """Whether the process is alive."""
        while not self._is_closing.wait(_LOOK):
            if link := self._link:
                try:
                    link.ping(_HANGS)
                except TimeoutError:
                    links.kill(link.pid)
                except OSError:  # it has ended, and is started again
                    pass

    def _reap(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)

    def _show(self, volume: Volume) -> None:
        """Once more where a content moved to the shared place between our naming and the process's opening. A process that hangs is
        killed: to bind what it does not show would hang as well."""
        link = self._linked()
        try:
            try:
                link.show(volume.id, volume.image, _folders(volume))
            except FileNotFoundError:
                link.show(volume.id, volume.image, _folders(volume))
        except TimeoutError:
            links.kill(link.pid)
            raise
        self._served[volume.id] = volume
        self._questions.tell(
            [(segment.inode, ALL if segment.is_open else segment.shown) for segment in volume.segments]
        )

    def _hide_others(self, welcome: Welcome, volumes: set[str]) -> None:
        """Of what the process shows; what somebody reads still is left."""
        for volume in set(welcome.volumes) - volumes:
            with suppress(OSError):
                self._linked().hide(volume)

    def _linked(self) -> Link:
        """Raises OSError while there is no process."""
        link = self._link
        if link is None:
            raise OSError(errno.ENOTCONN, "the process that serves FUSE has ended, and is started again")
        return link

    # -- what is shown

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        try:
            welcome = self._attach()
        except OSError as error:
            raise Failing(
                f"fuse mount {self._place.mount}: {error.strerror or error}", "see the log, and `modelvold doctor`"
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
        self._hide_others(welcome, {volume.id for volume in adopted})
        self._linked().serve()
        self._watch.start()
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
            if self._is_lost(entry, volume.id) and "idmapped" not in entry.options:
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
        link = self._link
        if link is not None and volume.id in self._served:
            pieces = pieces_of(self._tree_of(volume), volume, segments)
            link.drop(volume.id, [(piece.path, piece.start, piece.end) for piece in pieces])

    def stranded(self, volume: str) -> Sequence[str]:
        return elsewhere(lambda entry: self._is_lost(entry, volume))

    def forget(self, volume: Volume) -> None:
        remove_tree(volume)

    def close(self) -> None:
        """The process stays while it shows something."""
        self._is_closing.set()
        with self._lock:
            link, self._link = self._link, None
        self._questions.part()
        if link is not None:
            link.close()
        for thread in (self._watch, self._revival):
            if thread is not None and thread.ident is not None:
                thread.join()
        if not self._served:
            self._take_away_mount()
            self._reap()
            _take_away_place(self._place)

    def _is_lost(self, entry: MountEntry, volume: str) -> bool:
        """Whether it is a mount of the volume by a process that is ours no more."""
        is_ours = mounting.is_ours(entry) and entry.source == str(self._place.mount)
        return is_ours and entry.root == f"/{volume}" and entry.device != self._device

    def _folder(self, volume: Volume) -> Path:
        return self._place.mount / volume.id

    def _hide(self, volume: Volume) -> None:
        """Raises OSError(EBUSY) while files of it are open. A process that has died shows it no more."""
        link = self._link
        if link is not None:
            with suppress(ConnectionResetError):
                link.hide(volume.id)
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
        if device != self._device:
            try:
                self.renew(known.volume, target)
            except OSError as error:
                log.warning("renew volume=%s failed error=%s", known.volume.id, error)
                take_away(target)
                return False
        return True


def retire(run: Path) -> None:
    """Another backend is used: a process that a former daemon left goes with its last reader."""
    place = Place(run)
    if mounting.device_at(place.mount):
        log.warning("leave fuse mount=%s reason='of another backend'", place.mount)
        mounting.take_away(place.mount)
    _take_away_place(place)


def _take_away_place(place: Place) -> None:
    """Nothing is mounted there any more, and nobody asked."""
    place.socket.unlink(missing_ok=True)
    with suppress(OSError):  # it was never made, or what is mounted there could not be taken away
        place.mount.rmdir()


def _folders(volume: Volume) -> list[tuple[Path, int]]:
    return [(content.folder(), len(content.segments)) for content in volume.contents]
