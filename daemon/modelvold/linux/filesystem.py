"""The file system that holds a folder: which it is, on which disk, with a journal or not. Only /proc and /sys are asked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelvold.linux import mounts
from modelvold.linux.mounts import MountEntry

_PROC = Path("/proc")
_EXT = frozenset({"ext2", "ext3", "ext4"})


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`device` as `major:minor`; `disk` is its name as the kernel has it, empty where it is on none. `has_journal` speaks of ext4
    and its elders only."""

    type: str
    device: str
    disk: str
    has_journal: bool

    @property
    def lacks_journal(self) -> bool:
        """Whether a power cut may undo what was synced, for want of a journal."""
        return self.type in _EXT and not self.has_journal

    @property
    def is_freed_late(self) -> bool:
        """Whether it counts as free what was truncated only after a sync of all of it."""
        return self.type == "btrfs"


def filesystem_of(folder: Path) -> FileSystem | None:
    """None where it cannot be found out."""
    mount = _mount_of(folder)
    if mount is None:
        return None
    disk = _disk(mount)
    journal = has_journal(disk, _names(_PROC / "fs/jbd2"), _text(_PROC / "fs/ext4" / disk / "options"))
    return FileSystem(mount.fs_type, mount.device, disk, journal)


def has_journal(disk: str, journals: Sequence[str], options: str) -> bool:
    """Whether the ext4 file system on `disk` writes a journal: its thread is in the listing of /proc/fs/jbd2 (`sda1-8`), or, where
    the journal lies on another disk, /proc/fs/ext4/<disk>/options says how data go with it."""
    return any(re.fullmatch(rf"{re.escape(disk)}(-\d+)?", name) for name in journals) or "\ndata=" in f"\n{options}"


def boot_id() -> str:
    """This boot of the machine; never the same again."""
    return _text(_PROC / "sys/kernel/random/boot_id").strip()


def _mount_of(folder: Path) -> MountEntry | None:
    """By the number of the mount, which no mount over another can hide."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = dict(
            line.split(":\t") for line in _text(_PROC / f"self/fdinfo/{descriptor}").splitlines() if ":\t" in line
        )
    finally:
        os.close(descriptor)
    number = fields.get("mnt_id", "").strip()
    return next((entry for entry in mounts.mountinfo() if str(entry.mount_id) == number), None)


def _disk(mount: MountEntry) -> str:
    """Its name as the kernel has it, in /proc/fs too; empty where the file system is on none."""
    with suppress(OSError):
        return os.readlink(f"/sys/dev/block/{mount.device}").rpartition("/")[2]  # noqa: PTH115
    return Path(mount.source).name if mount.source.startswith("/dev/") else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []
