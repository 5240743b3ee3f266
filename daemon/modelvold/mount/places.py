"""How a folder is shown somewhere else: by a read-only bind mount, or, without the privilege, by a symbolic link.

A place is a folder that is there before and after. Where links are used it must be empty, and while something is shown
there it is a link instead, to the folder itself and not to another place where that is shown: those may lie on a file system
that is empty after a reboot.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from modelvold.linux import mounts


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
        here, there = place.stat(), source.stat()
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
        """A link leads to what is there."""

    def is_taken(self, place: Path) -> bool:
        return place.is_symlink()

    def shows(self, source: Path, place: Path) -> bool:
        return place.is_symlink() and source.exists() and place.readlink() == source.resolve()
