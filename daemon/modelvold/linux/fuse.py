"""FUSE, as far as a read-only file system needs it: mounting, and the kernel's protocol on /dev/fuse. OSError and nothing else.

ABI: `include/uapi/linux/fuse.h`, protocol 7.31 (Linux 5.4) and what later ones offer. Numbers are of the machine's own order. A request
is read from a descriptor and answered on the same one: each clone has its own list of what it has given out.

As root a mount is mount(2). Anybody else asks `fusermount3`, a setuid program of the package `fuse3`, which opens /dev/fuse, mounts it,
and sends the descriptor over the socket whose number is in its environment.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
import subprocess
from contextlib import suppress
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import NamedTuple

from modelvold.linux import mounts

MAJOR = 7
#: What an answer to INIT says that we speak; flags beyond it are set only where they are offered.
MINOR = 31
#: The inode of the mount's root.
ROOT = 1
PAGE = mmap.PAGESIZE
#: Bytes of one READ, at most: 256 pages of 4 KiB, more of which takes a setting of the machine's (fs.fuse.max_pages_limit).
LARGEST_READ = 1 << 20
#: Bytes read ahead, where we may say so: one largest request while the one before is copied out.
READAHEAD = 1 << 20
#: What a request is read into. Nobody writes, so that names and lists of what is forgotten are the longest; at least 8 KiB by the ABI.
ROOM = 64 << 10


class Opcode(IntEnum):
    """Those we know; the others get ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


class Init(IntFlag):
    """FUSE_* of INIT; from bit 32 on they travel in `flags2`."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    ALLOW_IDMAP = 1 << 40


class Open(IntFlag):
    """FOPEN_*: how the kernel keeps what it has of a file or folder."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5


class Request(NamedTuple):
    """What the kernel asks of inode `node`; `size` bytes of arguments follow the header. `device` is where the answer goes, `pid` the
    thread that asks, 0 where it is not of our process namespace."""

    device: int
    unique: int
    opcode: int
    node: int
    pid: int
    size: int


class Attributes(NamedTuple):
    """Of an inode. `mode` with its type; `mtime` in nanoseconds since 1970."""

    node: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    nlink: int


class InitIn(NamedTuple):
    major: int
    minor: int
    readahead: int
    flags: Init


class ReadIn(NamedTuple):
    """READ, READDIR and READDIRPLUS: `size` bytes from `offset` of what was opened as `handle`; `flags` are those of open(2)."""

    handle: int
    offset: int
    size: int
    flags: int


# len opcode unique nodeid uid gid pid total_extlen
_IN = struct.Struct("=2I2Q3IH2x")
_OUT = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=4I")
_FLAGS2 = struct.Struct("=I")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2 …
_INIT_OUT = struct.Struct("=4I2H2I2HI28x")
# fh offset size read_flags lock_owner flags
_READ_IN = struct.Struct("=2Q2IQI4x")
_OPEN_IN = struct.Struct("=I4x")
_OPEN_OUT = struct.Struct("=QI4x")
_NUMBER = struct.Struct("=Q")
# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
_ATTR = struct.Struct("=6Q10I")
# attr_valid attr_valid_nsec dummy
_ATTR_OUT = struct.Struct("=Q2I")
# nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
_ENTRY_OUT = struct.Struct("=4Q2I")
# ino off namelen type
_DIRENT = struct.Struct("=2Q2I")
# blocks bfree bavail files ffree bsize namelen frsize
_STATFS_OUT = struct.Struct("=5Q3I28x")
_INVAL_INODE = struct.Struct("=Q2q")
_INVAL_ENTRY = struct.Struct("=Q2I")

_IN_SIZE = _IN.size
_NOTIFY_INVAL_INODE, _NOTIFY_INVAL_ENTRY = 2, 3
_CLONE = 0x8004_E500  # FUSE_DEV_IOC_CLONE, _IOR(229, 0, uint32_t)
_SECTOR = 512
_LONGEST_NAME = 255

DEVICE = "/dev/fuse"
_SUBTYPE = "modelvold"
#: As mountinfo has it. There the source of a mount is the path where it was made, so that one of another place is told from it.
FS_TYPE = f"fuse.{_SUBTYPE}"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 0x1, 0x2, 0x4
HELPER = "fusermount3"
_HELPERS_SOCKET = "_FUSE_COMMFD"
#: Seconds. It does no more than a mount does; it waits where /etc/mtab is locked.
_HELPERS_TIME = 20.0
_BDI = Path("/sys/class/bdi")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


# -- mounting


def mount_root(target: Path, *, label: str = "") -> int:
    """Mount at the folder `target`, for all users, read-only; a descriptor of /dev/fuse, on which the kernel has asked for INIT.

    When the last descriptor of it is closed, the mount is dead and answers ENOTCONN. `label` is the SELinux context of all its files.
    Nothing here asks the mount itself: who answers it comes after.
    """
    device = _open()
    options = (
        f"fd={device},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()},"
        f"default_permissions,allow_other,max_read={LARGEST_READ}" + (f',context="{label}"' if label else "")
    )
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if _libc.mount(os.fsencode(target), os.fsencode(target), FS_TYPE.encode(), flags, options.encode()) < 0:
        code = ctypes.get_errno()
        os.close(device)
        raise OSError(code, f"mount of fuse: {os.strerror(code)}", str(target))
    with suppress(OSError):  # where /sys is read-only it stays 128 KiB; nothing else depends on it
        set_readahead(target, READAHEAD)
    return device


def mount_user(target: Path) -> int:
    """`mount_root` for a user without privileges: nobody else sees into the mount, and the kernel reads 128 KiB ahead.

    Raises FileNotFoundError where there is no fusermount3, OSError with what it said where it refused.
    """
    source = str(target).replace("\\", "\\\\").replace(",", "\\,")
    options = f"ro,nosuid,nodev,default_permissions,fsname={source},subtype={_SUBTYPE},max_read={LARGEST_READ}"
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        environment = {**os.environ, _HELPERS_SOCKET: str(its.fileno())}
        _help(["-o", options, "--", os.fspath(target)], target, environment, its.fileno())
        its.close()
        ours.settimeout(_HELPERS_TIME)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not descriptors:
        raise OSError(errno.EPROTO, f"{HELPER} sent no descriptor", str(target))
    return descriptors[0]


def unmount_root(target: Path, *, detach: bool = False) -> None:
    """EBUSY while it is used, unless `detach`: then it goes from the tree at once, and ends with its last user."""
    mounts.unmount(target, detach=detach)


def unmount_user(target: Path, *, detach: bool = False) -> None:
    """`unmount_root` of what `mount_user` mounted. EBUSY for whatever fusermount3 refuses."""
    _help(["-u", *(["-z"] if detach else []), "--", os.fspath(target)], target, dict(os.environ))


def set_readahead(target: Path, size: int) -> None:
    """The kernel reads `size` bytes ahead in the mount at `target`. For root."""
    point = f"{os.path.realpath(target.parent)}/{target.name}"
    found = [entry.device for entry in mounts.mountinfo() if entry.mount_point == point]
    if not found:
        raise OSError(errno.EINVAL, "nothing is mounted there", str(target))
    (_BDI / found[-1] / "read_ahead_kb").write_text(str(size >> 10))


def clone(device: int) -> int:
    """One more descriptor of the same mount, for a thread of its own."""
    descriptor = _open()
    try:
        fcntl.ioctl(descriptor, _CLONE, struct.pack("=I", device))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"{DEVICE}: {error.strerror}") from error


def _help(arguments: list[str], target: Path, environment: dict[str, str], *descriptors: int) -> None:
    try:
        ran = subprocess.run(
            [HELPER, *arguments],
            env=environment,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_HELPERS_TIME,
            check=False,
        )
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, f"{HELPER} is not on PATH", str(target)) from error
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{HELPER} does not end", str(target)) from error
    if ran.returncode:
        said = ran.stderr.decode("utf-8", "replace").strip().removeprefix(f"{HELPER}: ")
        code = errno.EBUSY if "-u" in arguments else errno.EPERM
        raise OSError(code, f"{HELPER}: {said or f'status {ran.returncode}'}", str(target))


# -- requests


def take(device: int, room: bytearray) -> Request | None:
    """Waits for the next request and puts it into `room`; its arguments begin at `ARGUMENTS`. None: one was called off before it could
    be read. Raises OSError, ENODEV once nothing is mounted any more."""
    try:
        os.readv(device, [room])
    except FileNotFoundError:
        return None
    length, opcode, unique, node, _, _, pid, extensions = _IN.unpack_from(room)
    return Request(device, unique, opcode, node, pid, length - _IN_SIZE - 8 * extensions)


#: Where a request's arguments begin in its room.
ARGUMENTS = _IN.size


def name_in(room: bytearray, request: Request) -> bytes:
    """Of LOOKUP."""
    return bytes(room[ARGUMENTS : ARGUMENTS + request.size]).rstrip(b"\0")


def init_in(room: bytearray, request: Request) -> InitIn:
    major, minor, readahead, flags = _INIT_IN.unpack_from(room, ARGUMENTS)
    if flags & Init.INIT_EXT and request.size >= _INIT_IN.size + _FLAGS2.size:
        flags |= _FLAGS2.unpack_from(room, ARGUMENTS + _INIT_IN.size)[0] << 32
    return InitIn(major, minor, readahead, Init(flags))


def read_in(room: bytearray) -> ReadIn:
    handle, offset, size, _, _, flags = _READ_IN.unpack_from(room, ARGUMENTS)
    return ReadIn(handle, offset, size, flags)


def open_in(room: bytearray) -> int:
    """Of OPEN and OPENDIR: the flags of open(2)."""
    flags: int = _OPEN_IN.unpack_from(room, ARGUMENTS)[0]
    return flags


def number_in(room: bytearray) -> int:
    """Of RELEASE and RELEASEDIR the handle; of INTERRUPT the request that a signal came for."""
    number: int = _NUMBER.unpack_from(room, ARGUMENTS)[0]
    return number


# -- answers


def reply(device: int, unique: int, answer: bytes | bytearray | memoryview = b"") -> None:
    """Raises OSError: ENOENT where nobody waits for it any more, ENODEV where nothing is mounted any more."""
    os.writev(device, (_OUT.pack(_OUT.size + len(answer), 0, unique), answer))


def refuse(device: int, unique: int, code: int) -> None:
    """The error number `code`. Raises OSError like `reply`."""
    os.write(device, _OUT.pack(_OUT.size, -code, unique))


def init_out(flags: Init, readahead: int) -> bytes:
    """Nothing bounds how many reads ahead are under way: those that wait for missing bytes must not hold up the others."""
    return _INIT_OUT.pack(
        MAJOR, MINOR, readahead, flags & 0xFFFF_FFFF, 0xFFFF, 0xFFFF, PAGE, 1, LARGEST_READ // PAGE, 0, flags >> 32
    )  # fmt: skip


def attr_out(attributes: Attributes, seconds: int) -> bytes:
    """Of GETATTR; the kernel asks again after so many seconds."""
    return _ATTR_OUT.pack(seconds, 0, 0) + _attr(attributes)


def entry_out(attributes: Attributes, entry_seconds: int, attr_seconds: int) -> bytes:
    """Of LOOKUP; the kernel asks again after so many seconds, for the name and for the attributes."""
    return _ENTRY_OUT.pack(attributes.node, 0, entry_seconds, attr_seconds, 0, 0) + _attr(attributes)


def no_entry_out(seconds: int) -> bytes:
    """Of LOOKUP: there is no such name, nor will be for so long."""
    return _ENTRY_OUT.pack(0, 0, seconds, 0, 0, 0) + bytes(_ATTR.size)


def no_attributes() -> bytes:
    """In place of an `entry_out` of READDIRPLUS: the kernel asks for it when it needs it."""
    return bytes(_ENTRY_OUT.size + _ATTR.size)


def dirent(node: int, after: int, kind: int, name: bytes) -> bytes:
    """An entry of READDIR, and behind an `entry_out` of READDIRPLUS. `after` is the offset at which reading goes on, `kind` a DT_*."""
    entry = _DIRENT.pack(node, after, len(name), kind) + name
    return entry + bytes(-len(entry) % 8)


def open_out(handle: int, flags: Open) -> bytes:
    return _OPEN_OUT.pack(handle, flags)


def handle_of(answer: bytes) -> int:
    """In an `open_out`."""
    handle: int = _OPEN_OUT.unpack(answer)[0]
    return handle


def statfs_out(size: int, block: int) -> bytes:
    """A file system of `size` bytes in blocks of `block`, all of them used."""
    return _STATFS_OUT.pack(-(-size // block), 0, 0, 0, 0, block, _LONGEST_NAME, block)


def invalidate(device: int, node: int, offset: int, length: int) -> None:
    """The kernel drops the pages with [offset, offset + length) of an inode. Waits for reads of those that are under way, so it is not for
    the thread that answers them. No error where the kernel does not know the inode."""
    _notify(device, _NOTIFY_INVAL_INODE, _INVAL_INODE.pack(node, offset, length))


def forget_entry(device: int, parent: int, name: bytes) -> None:
    """The kernel drops what it has of the entry `name` and below it. Waits for lookups in `parent` that are under way. No error where it
    has nothing."""
    _notify(device, _NOTIFY_INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0")


def _notify(device: int, code: int, body: bytes) -> None:
    with suppress(FileNotFoundError):
        os.write(device, _OUT.pack(_OUT.size + len(body), code, 0) + body)


def _attr(of: Attributes) -> bytes:
    seconds, nanoseconds = divmod(of.mtime, 10**9)
    return _ATTR.pack(
        of.node, of.size, -(-of.size // _SECTOR), seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds,
        of.mode, of.nlink, of.uid, of.gid, 0, PAGE, 0,
    )  # fmt: skip
