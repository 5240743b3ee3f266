"""How a folder is shown somewhere else: by a read-only bind mount, or, without the privilege, by a symbolic link.

A place is a folder that is there before and after. Where links are used it must be empty, and while something is shown
there it is a link instead, to the folder itself and not to another place where that is shown: those may lie on a file system
that is empty after a reboot.

What an ordinary user is shown is that user's: `owners_mode`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from modelvold.linux import mounts

_WRITABLE = 0o222
#: What an ordinary user has of every file and folder: root needs no such bit, so there are tars without.
_READABLE, _LISTABLE = 0o400, 0o500


def owners_mode(mode: int, *, is_folder: bool) -> int:
    """The permissions of a file or folder, `mode` in the artifact, where it belongs to an ordinary user: who may read it, and nobody may
    write it."""
    return mode & 0o777 & ~_WRITABLE | (_LISTABLE if is_folder else _READABLE)


class Places(Protocol):
    """Every method raises OSError."""

    def show(self, source: Path, place: Path) -> None:
        """Shows `source` at `place`."""

    def hide(self, place: Path) -> None:
        """Undoes `show`; EBUSY while a mount there is in use."""

    def renew(self, source: Path, place: Path) -> None:
        """`source` was mounted anew: from now on that is what is shown there."""

    def is_taken(self, place: Path) -> bool:
        """Whether something is shown there, whatever it is."""

    def shows(self, source: Path, place: Path) -> bool:
        """Whether it is `source` that is shown there."""


class Binds:
    def show(self, source: Path, place: Path) -> None:
        mounts.bind_readonly(source, place)

    def hide(self, place: Path) -> None:
        mounts.unmount(place)

    def renew(self, source: Path, place: Path) -> None:
        mounts.replace(source, place)

    def is_taken(self, place: Path) -> bool:
        """By the kernel's table: a bind mount of the same file system has no other mark."""
        return str(place) in {entry.mount_point for entry in mounts.mountinfo()}

    def shows(self, source: Path, place: Path) -> bool:
        if not (self.is_taken(place) and source.exists()):
            return False
        try:
            here, there = place.stat(), source.stat()
        except OSError:  # by FUSE, whose process has died
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class Links:
    def show(self, source: Path, place: Path) -> None:
        """ENOTEMPTY where the place is not empty."""
        folder = source.resolve(strict=True)
        place.rmdir()
        try:
            place.symlink_to(folder)
        except OSError:
            place.mkdir()
            raise

    def hide(self, place: Path) -> None:
        if not place.is_symlink():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(place))
        place.unlink()
        place.mkdir()

    def renew(self, source: Path, place: Path) -> None:
        """A link leads to what is there; where there is nothing any more, it leads to `source` from now on."""
        if place.is_symlink() and not os.path.exists(place):  # noqa: PTH110 — which answers of a dead mount, too
            folder = source.resolve(strict=True)
            place.unlink()
            place.symlink_to(folder)

    def is_taken(self, place: Path) -> bool:
        return place.is_symlink()

    def shows(self, source: Path, place: Path) -> bool:
        return place.is_symlink() and source.exists() and place.readlink() == source.resolve()
