"""Mounts: making, binding, taking away and listing them.

ABI: `include/uapi/linux/mount.h`, `stat.h`, `fs.h`; `/proc/self/mountinfo` as in proc_pid_mountinfo(5). Calls drop the
GIL: the kernel opens and may read an image's devices inside a mount, and an event of that must find a thread to answer
it. Every OSError carries the path it is about, and what the kernel's log of that mount said.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path


class Attribute(IntFlag):
    """MOUNT_ATTR_*: what a mount forbids."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8


#: How every volume is mounted.
VOLUME = Attribute.RDONLY | Attribute.NOSUID | Attribute.NODEV

# Alike on all architectures from 424 on.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
#: The kernel takes 256 bytes with the closing NUL, and calls more an invalid argument.
_LONGEST_VALUE = 255
_FROM_EMPTY_PATH, _BENEATH = 0x4, 0x200
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_TREE_CLONE = 1
_MS_BIND, _MS_PRIVATE = 0x1000, 1 << 18
_FORCE, _DETACH, _NOFOLLOW = 0x1, 0x2, 0x8
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE, _STATX_MNT_ID_AT = 256, 144
_GETFSUUID = 0x8011_1500  # _IOR(0x15, 0, struct fsuuid2), 17 bytes: the length, then the UUID

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
#: `syscall` again, for fsconfig alone, which is called once for each device: with its types known it takes a third of the time.
_config = _libc["syscall"]
_config.restype = ctypes.c_long
_config.argtypes = (*[ctypes.c_long] * 3, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of mountinfo. `device` is `major:minor`; `options` are the mount's, `super_options` its file system's."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: frozenset[str]
    fs_type: str
    source: str
    super_options: frozenset[str]


def mount_erofs(
    image: Path,
    devices: Iterable[str | Path],
    target: Path,
    *,
    directio: bool = False,
    label: str = "",
    flags: Attribute = VOLUME,
) -> None:
    """Mount `image`, a file, at `target`, with `devices` as its devices in their order.

    The kernel opens all of them now, by these paths, and keeps them open: through which mount of the store they are
    named decides which marks apply to them. `directio` reads the devices past the page cache; it needs chunks aligned
    for that. `label` is the SELinux context of all its files; EINVAL where there is no SELinux. A path has at most 255
    bytes. Without any device the kernel mounts the image all the same, and its files answer EIO.
    """
    with _fs_context("erofs", image) as context:
        _fsconfig(context, _SET_STRING, "source", os.fsencode(image))
        _fsconfig(context, _SET_FLAG, "ro", None)
        if directio:
            _fsconfig(context, _SET_FLAG, "directio", None)
        if label:
            _fsconfig(context, _SET_STRING, "context", os.fsencode(label))
        for device in devices:
            _fsconfig(context, _SET_STRING, "device", os.fsencode(device))
        _fsconfig(context, _CREATE, None, None)
        mount = _syscall(_FSMOUNT, context, _CLOEXEC, int(flags))
    _attach(mount, target)


def bind(source: Path, target: Path) -> None:
    """Show the directory or file `source` at `target` by another mount; what is mounted below `source` is not shown."""
    _mount(source, target, _MS_BIND)


def bind_readonly(source: Path, target: Path, *, nosuid: bool = True, nodev: bool = True) -> None:
    """`bind`, read-only from its first moment: the mount is made, restricted, and only then put at `target`.

    What the mount of `source` forbids, this one forbids too.
    """
    attributes = Attribute.RDONLY
    attributes |= Attribute.NOSUID if nosuid else Attribute(0)
    attributes |= Attribute.NODEV if nodev else Attribute(0)
    set_clear_propagation_userns = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    mount = clone(source)
    try:
        size = ctypes.sizeof(set_clear_propagation_userns)
        _syscall(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(set_clear_propagation_userns), size)
    except OSError as error:
        os.close(mount)
        raise OSError(error.errno, error.strerror, str(source)) from error
    _attach(mount, target)


def clone(path: Path) -> int:
    """A descriptor (O_PATH) of the root of a mount of its own of what `path` shows, attached nowhere: it keeps that from ending,
    and no mount of it from being unmounted. Goes when it is closed."""
    try:
        return _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _TREE_CLONE | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace(source: Path, target: Path) -> None:
    """Shows at the mount point `target` what is mounted at `source` in place of what is mounted there, which is detached, from one
    moment to the next: who looks has the one or the other. Before Linux 6.5 there is a moment with neither."""
    try:
        _attach(clone(source), target, beneath=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        unmount(target, detach=True)
        _attach(clone(source), target)
    else:
        unmount(target, detach=True)


def make_private(path: Path) -> None:
    """Mounts and unmounts at and below the mount point `path` stay where they are made."""
    _mount(None, path, _MS_PRIVATE)


def unmount(path: Path, *, detach: bool = False, force: bool = False) -> None:
    """Take the top mount at `path` away. EBUSY while it is used, unless `detach`: then it goes from the tree at once,
    and when the last user is gone it ends. `force` lets go of whoever waits for a file system that has nobody to answer, even where
    the mount stays.
    """
    flags = _NOFOLLOW | (_DETACH if detach else 0) | (_FORCE if force else 0)
    _checked(_libc.umount2(os.fsencode(path), flags), path)


def mountinfo(pid: int | None = None) -> list[MountEntry]:
    """The mounts that this process sees, or that of number `pid`, in the kernel's order: of two at one mount point the later one is
    on top. Raises OSError where there is no such process."""
    lines = Path(f"/proc/{pid or 'self'}/mountinfo").read_bytes().splitlines()
    return [_entry(os.fsdecode(line)) for line in lines]


def mount_id_unique(path: Path) -> int:
    """The number of the mount that `path` lies on, which no later mount gets (Linux 6.8), unlike mountinfo's."""
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    _checked(_libc.statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, answer), path)
    if not int.from_bytes(answer.raw[:4], "little") & _STATX_MNT_ID_UNIQUE:
        raise OSError(errno.ENOTSUP, "the kernel does not number mounts uniquely", str(path))
    return int.from_bytes(answer.raw[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], "little")


def filesystem_uuid(path: Path) -> bytes | None:
    """The UUID of the file system on which `path`, a directory or file, lies; None where it has none (Linux 6.9)."""
    answer = bytearray(17)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _GETFSUUID, answer)
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL}:
            return None
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)
    return bytes(answer[1 : 1 + answer[0]]) or None


@contextmanager
def _fs_context(fs_type: str, source: Path) -> Iterator[int]:
    """A file system in the making, for the time of the block; its failures carry `source` and the kernel's log."""
    try:
        context = _syscall(_FSOPEN, fs_type.encode(), _CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"mount of {fs_type}: {error.strerror}", str(source)) from error
    try:
        yield context
    except OSError as error:
        text = "; ".join([error.strerror or "", *_log_of(context)])
        raise OSError(error.errno, f"mount of {fs_type}: {text}", str(source)) from error
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: str | None, value: bytes | None) -> None:
    if value is not None and len(value) > _LONGEST_VALUE:
        raise OSError(errno.ENAMETOOLONG, f"the {key} {os.fsdecode(value)!r} is longer than {_LONGEST_VALUE} bytes")
    if _config(_FSCONFIG, context, command, None if key is None else key.encode(), value, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _log_of(context: int) -> list[str]:
    """What the kernel wrote into the context's log: one message a read, ENODATA after the last."""
    messages: list[str] = []
    try:
        while message := os.read(context, 1024):
            messages.append(message.decode("utf-8", "replace").strip())
    except OSError:
        pass
    return messages


def _attach(mount: int, target: Path, *, beneath: bool = False) -> None:
    """Put the detached mount behind the descriptor `mount` at `target`, over what is mounted there or beneath it; where that fails
    the mount ends."""
    flags = _FROM_EMPTY_PATH | (_BENEATH if beneath else 0)
    try:
        _syscall(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        os.close(mount)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    named = None if source is None else os.fsencode(source)
    _checked(_libc.mount(named, os.fsencode(target), None, flags, None), target)


def _syscall(number: int, *arguments: object) -> int:
    """Numbers go as longs: ctypes would pass an int, and the kernel reads a whole register."""
    result: int = _libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _checked(result: int, path: Path) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def _entry(line: str) -> MountEntry:
    """36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw; how many tags stand before the dash varies."""
    mount, _, system = line.partition(" - ")
    mount_id, parent_id, device, root, point, options = mount.split(" ")[:6]
    fs_type, source, super_options = system.split(" ", 2)
    return MountEntry(
        int(mount_id), int(parent_id), device, _unescaped(root), _unescaped(point), frozenset(options.split(",")),
        fs_type, _unescaped(source), frozenset(super_options.split(",")),
    )  # fmt: skip


def _unescaped(field: str) -> str:
    r"""Space, tab, newline and backslash stand as `\040`, `\011`, `\012`, `\134`."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
