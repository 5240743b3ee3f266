"""The table of what is mounted: one mount for a volume, whoever uses it, at `<run>/volumes/<id>`.

The kernel's mount table is the truth; at start it is read, and what carries our volumes' UUIDs is adopted, the rest below our
folder taken away.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from modelvold import points
from modelvold.errors import Failing, InUse
from modelvold.linux import mounts
from modelvold.mount.backend import Backend, Known, Volume, take_away, tolerated
from modelvold.points import Point
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


class MountTable:
    """`remember(volume, note)` and `recall(volume)` keep, over restarts, what the backend needs to adopt a mount."""

    def __init__(
        self, backend: Backend, folder: Path, recall: Callable[[str], str], remember: Callable[[str, str], None]
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._recall = recall
        self._remember = remember
        #: Guards _mounted, and that a volume is mounted once: held over mount(2), which is milliseconds, and with `fuse` over a question to
        #: its process, which is killed after ten seconds.
        self._lock = threading.Lock()
        self._mounted: dict[str, Volume] = {}

    @property
    def backend(self) -> str:
        return self._backend.name

    @property
    def is_lazy(self) -> bool:
        """Whether a volume may be mounted before its bytes are here."""
        return self._backend.is_lazy

    def shown_by(self, volume: str) -> str:
        """See Backend."""
        return self._backend.shown_by(volume)

    def asks(self, volume: str) -> bool:
        """See Backend."""
        return self._backend.asks(volume)

    def stranded(self) -> Mapping[str, Sequence[str]]:
        """See Backend."""
        return self._backend.stranded()

    def path(self, volume: str) -> Path:
        return self._folder / volume

    def is_mounted(self, volume: str) -> bool:
        with self._lock:
            return volume in self._mounted

    def mounted(self) -> list[Volume]:
        with self._lock:
            return list(self._mounted.values())

    def adopt(self, volumes: Iterable[Volume]) -> None:
        """Once, before anything is mounted. Volumes found mounted are served again on the same mounts; whatever else is
        below our folder goes."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._bare()
        known = [Known(volume, self.path(volume.id), self._recall(volume.id)) for volume in volumes]
        self._mounted = {volume.id: volume for volume in self._backend.adopt(known)}
        for volume in self._mounted:
            log.info("adopt volume=%s backend=%s", volume, self._backend.name)
        self._sweep({str(self.path(volume)) for volume in self._mounted})

    def ensure(self, volume: Volume) -> Path:
        """Where the volume is mounted: now if it was not, and anew if there is a better way by now. Raises Failing with the kernel's
        words."""
        target = self.path(volume.id)
        with self._lock:
            if volume.id not in self._mounted:
                target.mkdir(parents=True, exist_ok=True, mode=0o755)
                try:
                    note = self._backend.mount(volume, target)
                except OSError as error:
                    target.rmdir()
                    raise Failing(
                        f"volume {volume.id}: {error.strerror or error}", "see `modelvold status` and the log"
                    ) from error
                points.at(Point.MOUNT_MOUNTED)
                self._mounted[volume.id] = volume
                self._remember(volume.id, note)
                shown_by = self._backend.shown_by(volume.id)
                log.info("mount volume=%s backend=%s segments=%d", volume.id, shown_by, len(volume.segments))
            elif self._backend.is_outgrown(volume):
                self._renew(volume)
        return target

    def release(self, volume: str) -> None:
        """Unmounts it. Raises InUse while files of it are open."""
        target = self.path(volume)
        with self._lock:
            mounted = self._mounted.get(volume)
            if mounted is None:
                return
            others = [other for other in self._mounted.values() if other.id != volume]
            try:
                self._backend.unmount(mounted, target, others)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise InUse(f"volume {volume}: files of it are open") from error
                if error.errno != errno.EINVAL:  # somebody has unmounted it already
                    raise
            points.at(Point.MOUNT_UNMOUNTED)
            del self._mounted[volume]
            self._remember(volume, "")
            target.rmdir()
        log.info("unmount volume=%s", volume)

    def renew(self, volume: str) -> None:
        """See Backend.renew. Raises Failing where it cannot be mounted anew: then it is mounted no more, since what it showed is wrong."""
        with self._lock:
            if mounted := self._mounted.get(volume):
                self._renew(mounted)

    def _renew(self, volume: Volume) -> None:
        """The lock is held."""
        target = self.path(volume.id)
        try:
            note = self._backend.renew(volume, target)
        except OSError as error:
            del self._mounted[volume.id]
            self._remember(volume.id, "")
            take_away(target)
            raise Failing(
                f"volume {volume.id}: it had to be mounted anew, and cannot be: {error.strerror or error}",
                "see the log",
            ) from error
        self._remember(volume.id, note)
        log.info("renew volume=%s backend=%s", volume.id, self._backend.shown_by(volume.id))

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        """See Backend.read_ahead."""
        with self._lock:
            if volume in self._mounted:
                self._backend.read_ahead(volume, is_complete=is_complete)

    def drop_pages(self, volume: Volume, segments: Sequence[Segment]) -> None:
        """See Backend."""
        self._backend.drop_pages(volume, segments)

    def is_ready(self, volume: Volume) -> bool:
        """Whether `ensure` may be called."""
        return self._backend.is_ready(volume)

    def make_ready(self, volume: Volume, cancelled: Callable[[], bool]) -> None:
        """What the backend must do before. All bytes are here, where it needs them."""
        self._backend.make_ready(volume, cancelled)

    def forget(self, volume: Volume) -> None:
        """It leaves the store, and is not mounted."""
        self._backend.forget(volume)

    def _bare(self) -> None:
        """A daemon that ended in `renew` has left the new mount beneath the old one."""
        points = [entry.mount_point for entry in mounts.mountinfo()]
        for point in {point for point in points if Path(point).parent == self._folder}:
            for _ in range(points.count(point) - 1):
                log.warning("unmount path=%s reason='another one is mounted beneath it'", point)
                with tolerated(point):
                    mounts.unmount(Path(point), detach=True)

    def _sweep(self, adopted: set[str]) -> None:
        """What cannot be taken away stays, and is in nobody's way."""
        below = f"{self._folder}/"
        for point in [entry.mount_point for entry in mounts.mountinfo() if entry.mount_point.startswith(below)]:
            if point not in adopted:
                log.warning("unmount path=%s reason='no volume of this store, or of another backend'", point)
                with tolerated(point):
                    mounts.unmount(Path(point), detach=True)
        for path in self._folder.iterdir():
            if str(path) not in adopted:
                with tolerated(path):
                    path.unlink() if path.is_symlink() else path.rmdir()
