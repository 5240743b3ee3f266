"""Syncing of folders and file systems, and room set aside in them."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE, include/uapi/linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def set_aside(descriptor: int, length: int) -> None:
    """fallocate(2): the disk has room for the file's first `length` bytes, whatever its size, which stays. Nothing happens where
    the file system cannot. Raises OSError, ENOSPC where there is no room."""
    if length and _libc.fallocate(descriptor, _KEEP_SIZE, 0, length) < 0:
        code = ctypes.get_errno()
        if code not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise OSError(code, os.strerror(code))


def sync_filesystem(descriptor: int) -> None:
    """syncfs(2): all that was written to the file system on which `descriptor` lies is on disk. Raises OSError, since Linux
    5.8 also for writing back that failed after the descriptor was opened."""
    if _libc.syncfs(ctypes.c_int(descriptor)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_folder(folder: Path) -> None:
    """The names in it are on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder_filesystem(folder: Path) -> None:
    """`sync_filesystem` of the one that holds `folder`. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(descriptor)
    finally:
        os.close(descriptor)
