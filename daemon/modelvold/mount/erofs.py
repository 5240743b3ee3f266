"""What `lazy` and `complete` share: a volume as an EROFS mount, and the `complete` backend itself.

`complete` shows a volume when all its bytes are here: the kernel opens the segments by the ordinary path, and nobody is
asked about anything. A segment that is lost later is an I/O error until it is fetched again.

What the backend `directory` had made of a volume stays while the volume does: somebody may still read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelvold.linux import mounts
from modelvold.mount.backend import Backend, Known, Volume
from modelvold.mount.directory import remove_tree
from modelvold.mount.readahead import Readahead


def shown(known: Sequence[Known]) -> list[Known]:
    """Those that are EROFS mounts of their own images."""
    points = {entry.mount_point for entry in mounts.mountinfo() if entry.fs_type == "erofs"}
    return [
        each for each in known if str(each.target) in points and mounts.filesystem_uuid(each.target) == each.volume.uuid
    ]


class Complete(Backend):
    name = "complete"
    is_lazy = False

    def __init__(self, label: str = "") -> None:
        """`label`: the SELinux context of every volume's files; empty where there is no SELinux."""
        self._label = label
        self._readahead = Readahead()

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        return [each.volume for each in shown(known) if self.is_ready(each.volume)]

    def is_ready(self, volume: Volume) -> bool:
        return all(content.is_durable and content.is_verified for content in volume.contents)

    def mount(self, volume: Volume, target: Path) -> str:
        try:
            self._mount(volume, target)
        except FileNotFoundError:  # a content moved to the shared place between our naming and the kernel's opening
            self._mount(volume, target)
        return ""

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        mounts.unmount(target)
        self._readahead.forget(volume.id)

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        self._readahead.set(volume, is_complete=is_complete)

    def forget(self, volume: Volume) -> None:
        remove_tree(volume)

    def _mount(self, volume: Volume, target: Path) -> None:
        files = [file for content in volume.contents for file in content.files(content.folder())]
        with self._readahead.made(volume.id):
            mounts.mount_erofs(volume.image, files, target, label=self._label)
