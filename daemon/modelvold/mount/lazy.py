"""The lazy backend: EROFS over segment files that the kernel opens through the store's private mount, behind the gate.

`<run>/store` is a private bind mount of the store's contents and carries one pre-content mark. Whether a file can ever raise
events is decided when EROFS opens it: so the mark is there before the first mount, and EROFS opens through that mount alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from modelvold import points
from modelvold.linux import mounts
from modelvold.mount import erofs
from modelvold.mount.backend import Backend, Known, Volume
from modelvold.mount.directory import remove_tree
from modelvold.mount.gate import Gate
from modelvold.mount.questions import KernelQuestions
from modelvold.mount.readahead import Readahead
from modelvold.points import Point

log = logging.getLogger(__name__)


class Lazy(Backend):
    name = "lazy"
    is_lazy = True

    def __init__(self, gate: Gate, kernel: KernelQuestions, contents: Path, door: Path, label: str = "") -> None:
        """`kernel` asks the gate; `contents` is the store's folder of contents, `door` where its private mount is made, `label` as of
        Complete."""
        self._label = label
        self._gate = gate
        self._kernel = kernel
        self._contents = contents
        self._door = door
        self._mount_number = ""
        self._readahead = Readahead()

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        found = erofs.shown(known)
        self.serve([(each.volume, each.note) for each in found])
        return [each.volume for each in found]

    def serve(self, mounted: Sequence[tuple[Volume, str]]) -> None:
        """Opens the door. Of what is `mounted`, each with the note its mount gave, what is durable is silenced first,
        then everything else is asked about: no read of a present byte is asked about in vain."""
        self._open_door()
        for volume, _ in mounted:
            self._gate.watch(volume.id, volume.segments)
        self._kernel.guard_mount(self._door)
        self._gate.guard()
        for volume, opened_through in mounted:
            if opened_through != self._mount_number:
                log.warning("adopt volume=%s reason='the store mount it was opened through is gone'", volume.id)
                self._kernel.guard_files(segment.path for segment in volume.segments)

    def is_ready(self, volume: Volume) -> bool:
        """Bytes that are not verified are shown to the source alone that they come from (rule 6), not to those who share them."""
        return all(content.source or content.is_verified for content in volume.contents)

    def mount(self, volume: Volume, target: Path) -> str:
        self._gate.watch(volume.id, volume.segments)
        points.at(Point.MOUNT_WATCHED)
        try:
            self._mount(volume, target)
        except FileNotFoundError:  # a content moved to the shared place between our naming and the kernel's opening
            self._mount(volume, target)
        return self._mount_number

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        mounts.unmount(target)
        self._readahead.forget(volume.id)
        needed = {segment.inode for other in others for segment in other.segments}
        self._gate.unwatch([segment for segment in volume.segments if segment.inode not in needed])

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        self._readahead.set(volume, is_complete=is_complete)

    def forget(self, volume: Volume) -> None:
        remove_tree(volume)

    def close_door(self) -> None:
        """When nothing is mounted any more."""
        mounts.unmount(self._door, detach=True)

    def _mount(self, volume: Volume, target: Path) -> None:
        files = [file for content in volume.contents for file in content.files(self._behind_door(content.folder()))]
        with self._readahead.made(volume.id):
            mounts.mount_erofs(volume.image, files, target, label=self._label)

    def _behind_door(self, folder: Path) -> Path:
        return self._door / folder.relative_to(self._contents)

    def _open_door(self) -> None:
        """The private mount, adopted where a former daemon left it: its number tells whether volumes were opened through it."""
        self._door.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._is_door_open():
            mounts.bind(self._contents, self._door)
            mounts.make_private(self._door)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._mount_number = f"{boot}/{mounts.mount_id_unique(self._door)}"

    def _is_door_open(self) -> bool:
        at_door = [entry for entry in mounts.mountinfo() if entry.mount_point == str(self._door)]
        if not at_door:
            return False
        here, there = self._door.stat(), self._contents.stat()
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return True
        log.warning("unmount path=%s reason='not our store'", self._door)
        mounts.unmount(self._door, detach=True)
        return self._is_door_open()
