"""The table of what is mounted: one mount for a volume, whoever uses it, at `<run>/volumes/<id>`.

The kernel's mount table is the truth; at start it is read, and what carries our volumes' UUIDs is adopted, the rest below our
folder taken away.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from modelvold.errors import Failing, InUse
from modelvold.linux import mounts
from modelvold.mount.backend import Backend, Volume

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
        self._lock = (
            threading.Lock()
        )  # guards _mounted, and that a volume is mounted once: held over mount(2), which is milliseconds
        self._mounted: dict[str, Volume] = {}

    @property
    def backend(self) -> str:
        return self._backend.name

    def path(self, volume: str) -> Path:
        return self._folder / volume

    def is_mounted(self, volume: str) -> bool:
        with self._lock:
            return volume in self._mounted

    def mounted(self) -> list[Volume]:
        with self._lock:
            return list(self._mounted.values())

    def adopt(self, volumes: Iterable[Volume]) -> None:
        """Once, before anything is mounted. Volumes found mounted are served again on the same mounts."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        known = {str(self.path(volume.id)): volume for volume in volumes}
        found: list[tuple[Volume, str]] = []
        for point in self._mount_points():
            volume = known.get(point)
            if volume is not None and mounts.filesystem_uuid(Path(point)) == volume.uuid:
                log.info("adopt volume=%s", volume.id)
                found.append((volume, self._recall(volume.id)))
            else:
                log.warning("unmount path=%s reason='no volume of this store'", point)
                mounts.unmount(Path(point), detach=True)
        self._backend.adopt(found)
        self._mounted = {volume.id: volume for volume, _ in found}

    def ensure(self, volume: Volume) -> Path:
        """Where the volume is mounted, now if it was not. Raises Failing with the kernel's words."""
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
                self._mounted[volume.id] = volume
                self._remember(volume.id, note)
                log.info("mount volume=%s backend=%s segments=%d", volume.id, self._backend.name, len(volume.segments))
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
                raise
            del self._mounted[volume]
            self._remember(volume, "")
            target.rmdir()
        log.info("unmount volume=%s", volume)

    def _mount_points(self) -> list[str]:
        below = f"{self._folder}/"
        return [entry.mount_point for entry in mounts.mountinfo() if entry.mount_point.startswith(below)]
