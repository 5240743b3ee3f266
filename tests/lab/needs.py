"""Whether this machine can run what the laboratory shows: asked of the kernel by trying, never by its version.

Only what can be seen in a moment and without mounting; the daemon's own probe, at its start, has the last word.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab import debian

_LIBC = ctypes.CDLL(None, use_errno=True)
_FAN_CLASS_PRE_CONTENT = 0x8
_FAN_CLOEXEC = 0x1
_FAN_MARK_ADD = 0x1
_FAN_PRE_ACCESS = 0x00100000
_AT_FDCWD = -100


def missing_for_containers() -> str:
    """What keeps pods from running here, in one line; empty if nothing does."""
    if os.geteuid() != 0:
        return "not root: mounts and containers need it"
    if not Path("/sys/fs/cgroup").is_dir() or not any(Path("/sys/fs/cgroup").iterdir()):
        return "no cgroups at /sys/fs/cgroup"
    return ""


def missing_for_lazy(folder: Path) -> str:
    """What keeps a store in `folder` from being mounted lazily, in one line; empty if nothing seen does."""
    if reason := missing_for_containers():
        return reason
    if not _has_erofs():
        return "the kernel has no EROFS (CONFIG_EROFS_FS)"
    return _missing_events(folder)


def lazy_folder() -> Path:
    """A new folder on a file system that allows pre-content events, if there is one among the usual places.

    Without one the folder is in the first place; `missing_for_lazy` then says why.
    """
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), debian.folder()]
    good = (place for place in places if place.is_dir() and not missing_for_lazy(place))
    return Path(tempfile.mkdtemp(prefix="modelvold-", dir=next(good, places[0])))


def _has_erofs() -> bool:
    if "\terofs\n" in Path("/proc/filesystems").read_text():
        return True
    subprocess.run(["modprobe", "-q", "erofs"], check=False, capture_output=True)
    return "\terofs\n" in Path("/proc/filesystems").read_text()


def _missing_events(folder: Path) -> str:
    group = _LIBC.fanotify_init(_FAN_CLASS_PRE_CONTENT | _FAN_CLOEXEC, os.O_RDONLY)
    if group < 0:
        return f"the kernel has no fanotify permission events: {os.strerror(ctypes.get_errno())}"
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            path = ctypes.c_char_p(os.fsencode(file.name))
            mask = ctypes.c_uint64(_FAN_PRE_ACCESS)
            if _LIBC.fanotify_mark(group, _FAN_MARK_ADD, mask, _AT_FDCWD, path) < 0:
                why = os.strerror(ctypes.get_errno())
                return f"no pre-content events in {folder} (Linux 6.14 or later, and ext4, XFS or btrfs): {why}"
    finally:
        os.close(group)
    return ""
