"""The store's folder: whether it can be there, what its file system promises, how much room it has, who holds it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelvold.doctor.line import Group, Line, copied
from modelvold.store.amount import size

GROUP = Group("store")
#: What was synced was there after power cuts, in tests of each (ext3 is ext4 by another name).
_DURABLE = frozenset({"ext3", "ext4", "xfs", "btrfs"})
_EXT = frozenset({"ext2", "ext3", "ext4"})
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_LEAST_SHARE, _LEAST_ROOM = 10, 10 << 30
_ELSEWHERE = "put the store on ext4 with a journal, XFS or btrfs, by modelvold's settings:\n" + copied(
    '[store]\nroot = "/data/modelvold"'
)


@dataclass(frozen=True, slots=True)
class Place:
    """What was seen at the store's folder `root`, or, where it is not there, at `nearest`, the folder above it that is.

    `device` is the file system's, as `major:minor` and, where it is a disk, by `disk`, its name. `has_journal` speaks of ext4 only.
    `total` and `free` in bytes. `holder` is the process that holds the store's lock, 0 if none was seen.
    """

    root: Path
    nearest: Path
    is_folder: bool
    is_writable: bool
    fs_type: str
    disk: str
    has_journal: bool
    total: int
    free: int
    holder: int

    @property
    def is_there(self) -> bool:
        return self.nearest == self.root


def check(place: Place) -> Iterator[Line]:
    yield _folder(place)
    if not place.is_folder:
        return
    yield _file_system(place)
    yield _room(place)
    if place.holder:
        yield GROUP.ok("in use", f"a daemon runs on it (pid {place.holder})")


def holder(locks: str, device: str, inode: int) -> int:
    """The process that holds a flock on the file, by /proc/locks (proc_locks(5)); 0 if none that we may see does.

    Read there and not tried: to try a lock is to hold it for a moment, in which a daemon would fail to start.
    """
    major, _, minor = device.partition(":")
    file = f"{int(major):02x}:{int(minor):02x}:{inode}"
    held = re.search(rf"(?m)^\d+:\s+FLOCK\s+\S+\s+WRITE\s+(\d+)\s+{file}\s", locks)
    return int(held[1]) if held else 0


def _folder(place: Place) -> Line:
    what, root = "folder", place.root
    if not place.is_folder:
        return GROUP.bad(what, f"{root}: {place.nearest} is no folder", "move it away, or name another with --root")
    if not place.is_writable:
        seen = f"{root}: not there, and {place.nearest} cannot be written"
        seen = f"{root}: cannot be written" if place.is_there else seen
        return GROUP.bad(what, seen, "run as root, or name a folder of your own with --root")
    if place.is_there:
        return GROUP.ok(what, str(root))
    return GROUP.ok(what, f"{root}, not there yet; can be made, and was tried, in {place.nearest}")


def _file_system(place: Place) -> Line:
    what, on = "file system", f"{place.fs_type} on {place.disk}" if place.disk else place.fs_type
    if place.fs_type in _VOLATILE:
        return GROUP.warn(what, f"{on}, in memory: not durable, and empty after a reboot", _ELSEWHERE)
    if place.fs_type == "overlay":
        seen = f"{on}: not durable, and gone with the container if it is a container's own"
        return GROUP.warn(what, seen, f"mount a folder of the node there; or {_ELSEWHERE}")
    if place.fs_type in _EXT and not place.has_journal:
        seen = f"{on} without a journal: not durable, for a power cut may undo what was recorded"
        mend = (
            f"make one while it is not mounted:\n{copied(f'tune2fs -O has_journal /dev/{place.disk}')}\nor {_ELSEWHERE}"
        )
        return GROUP.warn(what, seen, mend)
    if place.fs_type not in _DURABLE:
        return GROUP.warn(what, f"{on}: never tried here, so durable or not is unknown", _ELSEWHERE)
    return GROUP.ok(what, f"{on}, durable")


def _room(place: Place) -> Line:
    share = 100 * place.free // max(place.total, 1)
    seen = f"{size(place.free)} free of {size(place.total)}, {share} %"
    if share >= _LEAST_SHARE and place.free >= _LEAST_ROOM:
        return GROUP.ok("room", seen)
    mend = f"see what lies there, and remove what is not used; or put the store on a larger disk (--root):\n{_LOOK}"
    return GROUP.warn("room", f"{seen}, less than {_LEAST_SHARE} % or {size(_LEAST_ROOM)}", mend)


_LOOK = copied("modelvold status\nmodelvold rm REF")
