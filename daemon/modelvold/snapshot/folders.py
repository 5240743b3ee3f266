"""The folders behind ordinary snapshots, and how they go away.

    snapshots/              0700
      <number>/fs           what the snapshot changes: an overlay's upper, a lower of its children
      <number>/work         the overlay's work folder; active snapshots only
      removed/<random>      set aside, being removed

A folder whose number is in no row is set aside by one rename, and removed from there. Removing never follows a mount
and needs neither recursion nor long paths, whatever a container has left: a tree is taken apart by renaming its
folders up into `removed`, one level at a time, and rename(2) refuses a mount point (EBUSY) as it refuses to cross file
systems (EXDEV).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelvold.errors import Exhausted, InvalidInput
from modelvold.snapshot.record import Kind, Record, Usage

log = logging.getLogger(__name__)

_DISK_BLOCK = 512  # of st_blocks, whatever the file system's own block is: stat(2)


class Folders:
    """Below `root`. Not synchronised: the caller says which numbers live, and holds them still meanwhile."""

    def __init__(self, root: Path) -> None:
        if set(str(root)) & set(":,\\"):
            raise InvalidInput(f"{root}: the path has a colon, comma or backslash, which overlay mounts cannot take")
        self._root = root
        self._removed = root / "removed"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._removed.mkdir(mode=0o700, exist_ok=True)

    def make(self, record: Record, owner: tuple[int, int] | None = None) -> None:
        """Makes the snapshot's folder. `fs` is root's with mode 0755, or has its parent's owner and mode: an overlay
        shows its upper's root as its own. `owner`, ids of a user and a group, has it whatever its parent is. Raises
        Exhausted when the disk is full."""
        own = self._root / str(record.layer.number)
        try:
            if own.exists():  # of a creation that was rolled back, and its number with it
                self._set_aside(own)
            own.mkdir(mode=0o700)
            self._make_upper(own / "fs", record)
            if owner is not None:
                os.chown(own / "fs", *owner)
            if record.info.kind is Kind.ACTIVE:
                (own / "work").mkdir()
                (own / "work").chmod(0o711)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Exhausted(
                    f"snapshot {record.info.name!r}: {own}: {error.strerror}", "free space in the store"
                ) from error
            raise

    def _make_upper(self, upper: Path, record: Record) -> None:
        upper.mkdir()
        parent = next(iter(record.parents), None)
        if parent is None or parent.volume is not None:  # a volume's root is root's with mode 0755 too
            upper.chmod(0o755)
            return
        root = (self._root / str(parent.number) / "fs").stat()
        os.chown(upper, root.st_uid, root.st_gid)
        upper.chmod(stat.S_IMODE(root.st_mode))

    def owner(self, number: int) -> tuple[int, int]:
        """The user and the group of the snapshot's `fs`."""
        root = (self._root / str(number) / "fs").stat()
        return root.st_uid, root.st_gid

    def usage(self, number: int) -> Usage:
        """What the snapshot's `fs` takes on disk. A tree that changes meanwhile is counted as far as it was seen."""
        size, seen, pending = 0, set(), [str(self._root / str(number) / "fs")]
        while pending:
            for status, path in _look_into(pending.pop()):
                if status.st_ino in seen:  # a hard link
                    continue
                seen.add(status.st_ino)
                size += status.st_blocks * _DISK_BLOCK
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
        root = (self._root / str(number) / "fs").lstat()
        return Usage(size + root.st_blocks * _DISK_BLOCK, len(seen) + 1)

    def set_aside(self, live: set[int]) -> None:
        """Sets aside every numbered folder that is not in `live`, and says which of `live` have none."""
        present = {int(path.name): path for path in self._root.iterdir() if path.name.isdecimal()}
        for number in present.keys() - live:
            try:
                self._set_aside(present[number])
            except OSError as error:
                log.warning("keep folder number=%d why=%s", number, error)
        for number in live - present.keys():
            log.error("miss folder number=%d path=%s", number, self._root / str(number))

    def _set_aside(self, folder: Path) -> None:
        folder.rename(self._removed / secrets.token_hex(8))

    def remove(self) -> None:
        """Removes what was set aside. What cannot be removed (a mount in it) stays, and is tried again the next
        time."""
        with _opened(str(self._removed)) as removed:
            pending = [path.name for path in self._removed.iterdir()]
            while pending:
                name = pending.pop()
                try:
                    pending += _take_apart(name, removed)
                except OSError as error:
                    log.warning("keep folder path=%s why=%s", self._removed / name, error)


def _look_into(folder: str) -> Iterator[tuple[os.stat_result, str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    yield entry.stat(follow_symlinks=False), entry.path
                except FileNotFoundError:
                    continue
    except OSError as error:
        log.debug("skip folder path=%s why=%s", folder, error)


@contextmanager
def _opened(name: str, within: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take_apart(name: str, removed: int) -> list[str]:
    """Removes the folder `name` of the folder `removed`; the folders in it are moved up beside it, under the names
    returned."""
    moved = []
    with _opened(name, removed) as folder:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for entry_name, is_folder in found:
            if not is_folder:
                os.unlink(entry_name, dir_fd=folder)
                continue
            moved.append(secrets.token_hex(8))
            os.rename(entry_name, moved[-1], src_dir_fd=folder, dst_dir_fd=removed)
    os.rmdir(name, dir_fd=removed)
    return moved
