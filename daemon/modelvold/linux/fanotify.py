"""fanotify's pre-content events, as far as the gate needs them: one typed function a call, OSError and nothing else.

ABI: `include/uapi/linux/fanotify.h`. What makes or changes marks goes through a CDLL, which drops the GIL: marking a file may make
the kernel ask this very process for bytes. Taking an event and answering it never wait, and go through a PyDLL, which keeps the GIL:
a thread that drops it has it back milliseconds later where others compute, and a process that is killed meanwhile has taken an
event and noted it nowhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

_CLASS_PRE_CONTENT = 0x08
_CLOEXEC = 0x01
_NONBLOCK = 0x02
_UNLIMITED_QUEUE = 0x10
_UNLIMITED_MARKS = 0x20

_MARK_ADD = 0x01
_MARK_REMOVE = 0x02
_MARK_MOUNT = 0x10
_MARK_IGNORE = 0x400
_IGNORED_SURV_MODIFY = 0x40
_PRE_ACCESS = 0x0010_0000
_AT_FDCWD = -100

_LENGTH = struct.Struct("=I")
_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH")
_RANGE = struct.Struct("=IQQ")
_RESPONSE = struct.Struct("=iI")
_INFO_RANGE = 6
_METADATA_VERSION = 3
_ALLOW = 1
_DENY_EIO = 2 | errno.EIO << 24

_AT_EMPTY_PATH = 0x1000
_STATX_INO = 0x100
_STATX_SIZE, _STATX_INO_AT = 256, 32

#: Bytes of one event with its range, and too few for two: what is taken is noted before the next is.
ROOM = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)

_held = ctypes.PyDLL(None, use_errno=True)
_held.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_held.read.restype = ctypes.c_ssize_t
_held.write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_held.write.restype = ctypes.c_ssize_t
_held.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)

#: What the kernel writes an event into: `ROOM` bytes.
Room = ctypes.Array[ctypes.c_char]


@dataclass(frozen=True, slots=True)
class Event:
    """The kernel is about to read [offset, offset + count) of the file behind `fd`, and waits.

    `fd` is read-only, ours to close after the answer. `pid` is whose read it is. `count` is 0 for a truncation.
    """

    fd: int
    pid: int
    offset: int
    count: int


def open_group() -> int:
    """A pre-content group, non-blocking; its events' descriptors are read-only, so that a store gone read-only loses none."""
    flags = _CLASS_PRE_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
    return _checked(_libc.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC), "fanotify_init")


def mark_mount(group: int, mount: Path) -> None:
    """Ask before every read through this mount."""
    _mark(group, _MARK_ADD | _MARK_MOUNT, mount)


def mark_file(group: int, file: Path) -> None:
    """Ask before every read of this file, by whatever path."""
    _mark(group, _MARK_ADD, file)


def unmark_file(group: int, file: Path) -> None:
    _mark(group, _MARK_REMOVE, file)


def ignore(group: int, file: Path) -> None:
    """From now on the kernel reads this file without asking, though it is written to."""
    _mark(group, _MARK_ADD | _MARK_IGNORE | _IGNORED_SURV_MODIFY, file)


def unignore(group: int, file: Path) -> None:
    """Ask again. Reads that passed before may still be under way for a moment. No error where nothing was ignored."""
    try:
        _mark(group, _MARK_REMOVE | _MARK_IGNORE | _IGNORED_SURV_MODIFY, file)
    except FileNotFoundError:
        if not file.exists():
            raise


def take(group: int, room: Room) -> Event | None:
    """The next event, None if there is none. The kernel writes it into `room`, where it stays until the next, or until its first
    bytes are set to zero (`taken`). Raises OSError (EMFILE, …) where the kernel could not hand it over: it has denied that read."""
    got = _held.read(group, room, ROOM)
    if got < 0:
        number = ctypes.get_errno()
        if number == errno.EAGAIN:
            return None
        raise OSError(number, f"read of events: {os.strerror(number)}")
    return _parsed(room)


def taken(room: Room | bytes) -> Event | None:
    """The event that was taken last into `room`; None where there is none."""
    return _parsed(room) if any(room[: _LENGTH.size]) else None


def inode_of(fd: int) -> int:
    """Of the file that an event is about."""
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    if _held.statx(fd, b"", _AT_EMPTY_PATH, _STATX_INO, answer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"statx: {os.strerror(number)}")
    return int.from_bytes(answer.raw[_STATX_INO_AT : _STATX_INO_AT + 8], sys.byteorder)


def allow(group: int, fd: int) -> None:
    _respond(group, fd, _ALLOW)


def deny(group: int, fd: int) -> None:
    """The reader gets EIO (SIGBUS where the file is mapped)."""
    _respond(group, fd, _DENY_EIO)


def _parsed(room: Room | bytes) -> Event:
    length, version, _, header, _, fd, pid = _EVENT.unpack_from(room)
    if version != _METADATA_VERSION:
        raise OSError(errno.EPROTO, f"fanotify speaks version {version}, not {_METADATA_VERSION}")
    offset = count = 0
    info = header
    while info < length:
        kind, _, size = _INFO.unpack_from(room, info)
        if kind == _INFO_RANGE:
            _, offset, count = _RANGE.unpack_from(room, info + _INFO.size)
        info += max(size, _INFO.size)
    return Event(fd, pid, offset, count)


def _mark(group: int, flags: int, path: Path) -> None:
    _checked(_libc.fanotify_mark(group, flags, _PRE_ACCESS, _AT_FDCWD, os.fsencode(path)), "fanotify_mark", path)


def _respond(group: int, fd: int, response: int) -> None:
    """ENOENT: nobody waits under this number (any more)."""
    if _held.write(group, _RESPONSE.pack(fd, response), _RESPONSE.size) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"answer: {os.strerror(number)}")


def _checked(result: int, call: str, path: Path | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", str(path) if path else None)
    return result
