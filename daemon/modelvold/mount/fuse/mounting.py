"""The process's mount: made, found and taken away; by root, or by `fusermount3` for anybody else."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from modelvold.linux import fuse, mounts
from modelvold.linux.mounts import MountEntry

log = logging.getLogger(__name__)


def mount(target: Path, label: str = "") -> int:
    """A descriptor of /dev/fuse. Raises OSError."""
    return fuse.mount_root(target, label=label) if os.geteuid() == 0 else fuse.mount_user(target)


def unmount(target: Path) -> None:
    """Who has it goes on having it. Raises OSError."""
    (fuse.unmount_root if os.geteuid() == 0 else fuse.unmount_user)(target, detach=True)


def abort(target: Path) -> None:
    """Its process is dead, or as good as dead: one that was killed in the middle of a call may hold its descriptor for ever. Whoever
    waits for it waits no more. Nothing without the privilege."""
    with suppress(OSError):
        mounts.unmount(target, force=True)


def take_away(target: Path) -> None:
    """All that is mounted there, as far as it can be."""
    while device_at(target):
        try:
            unmount(target)
        except OSError as error:
            log.warning("keep path=%s reason=%r", target, error.strerror)
            return


def device_at(path: Path) -> str:
    """Of the mount that is there, or bound there, as `major:minor`; empty where there is none."""
    point = f"{os.path.realpath(path.parent)}/{path.name}"  # as the table names it; what is mounted there may be dead and is not asked
    found = [entry.device for entry in mounts.mountinfo() if entry.mount_point == point and is_ours(entry)]
    return found[-1] if found else ""


def is_ours(entry: MountEntry) -> bool:
    """Whether it is a mount of such a process, whosever that is."""
    return entry.fs_type == fuse.FS_TYPE
