"""The process's mount: made, found and taken away; by root, or by `fusermount3` for anybody else."""

from __future__ import annotations

import os
from pathlib import Path

from modelvold.linux import fuse, mounts
from modelvold.linux.mounts import MountEntry


def mount(target: Path, label: str = "") -> int:
    """A descriptor of /dev/fuse. Raises OSError."""
    return fuse.mount_root(target, label=label) if os.geteuid() == 0 else fuse.mount_user(target)


def unmount(target: Path) -> None:
    """Who has it goes on having it. Raises OSError."""
    (fuse.unmount_root if os.geteuid() == 0 else fuse.unmount_user)(target, detach=True)


def device_at(path: Path) -> str:
    """Of the mount that is there, or bound there, as `major:minor`; empty where there is none."""
    point = f"{os.path.realpath(path.parent)}/{path.name}"  # as the table names it; what is mounted there may be dead and is not asked
    found = [entry.device for entry in mounts.mountinfo() if entry.mount_point == point and is_ours(entry)]
    return found[-1] if found else ""


def is_ours(entry: MountEntry) -> bool:
    """Whether it is a mount of such a process, whosever that is."""
    return entry.fs_type == fuse.FS_TYPE
