"""The loop: takes what the kernel asks of the mount, and answers it.

The mount's root lists the volumes as they come and go, so nothing of its entries is kept by the kernel. Below, nothing ever changes, and
the kernel keeps all for a day. What it knows of an inode is not counted: a node's number says by itself what it is, and FORGET is no news.

Whatever happens in a thread of the loop is answered, with EIO where it should not happen: a thread that ended would leave readers waiting.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from modelvold.errors import Malformed
from modelvold.linux import fuse
from modelvold.linux.fuse import Attributes, Init, Opcode, Open, Request
from modelvold.mount.fuse.reads import Read, Reads, Room
from modelvold.mount.fuse.shelf import Names, Opened, Shelf, Volume, nid_of, node_of, number_of
from modelvold.mount.places import owners_mode
from modelvold.volume.image import Inode

log = logging.getLogger(__name__)

#: Threads of the loop, which never wait for a disk: one for two processors, the other one being a reader's. (On two of them one thread
#: serves 2.0 GB/s, four serve 1.5 to 1.7: they wait for each other.)
THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))
#: Seconds for which the kernel need not ask again of what never changes: a day.
_KEPT = 86_400
#: All that is of use here, where the kernel offers it.
_WANTED = (
    Init.ASYNC_READ | Init.ASYNC_DIO | Init.PARALLEL_DIROPS | Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS | Init.EXPLICIT_INVAL_DATA | Init.INIT_EXT | Init.ALLOW_IDMAP
)  # fmt: skip
#: EROFS's, so that a volume has the same size whoever shows it.
_BLOCK = 512
_DT_DIRECTORY = 4
#: Seconds after an error that is none of a request's. Do not spin.
_PAUSE_AFTER_ERROR = 0.1
_CALLED_OFF = frozenset({errno.ENOENT, errno.ENODEV})


class Kernel:
    """Of one mount, whose descriptor `device` is ours from now on."""

    def __init__(self, device: int, shelf: Shelf, reads: Reads, *, threads: int = THREADS) -> None:
        self._device = device
        self._shelf = shelf
        self._reads = reads
        self._threads = threads
        self._began = time.time_ns()
        self._asked: dict[int, Callable[[Request, bytearray], bytes]] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._release,
            Opcode.STATFS: self._statfs,
            Opcode.DESTROY: lambda *_: b"",
        }

    def run(self) -> None:
        """Returns when nothing is mounted any more, and nothing of it is open. Raises OSError where it cannot begin."""
        with ExitStack() as life:
            life.callback(self._shelf.close)
            life.callback(os.close, self._device)
            devices = [self._device]
            for _ in range(self._threads - 1):
                devices.append(fuse.clone(self._device))
                life.callback(os.close, devices[-1])
            life.callback(self._reads.end)
            threads = [
                threading.Thread(target=self._serve, args=(device,), name=f"fuse-{number}")
                for number, device in enumerate(devices)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def invalidate(self, node: int, offset: int, length: int) -> None:
        """The kernel drops its pages with these bytes of a file. Those that a waiting read holds have no bytes yet, and are left out. May
        wait for reads that go on meanwhile: for a thread of its own. Raises OSError, ENODEV where nothing is mounted any more."""
        for start, end in self._reads.free(node, offset, offset + length):
            fuse.invalidate(self._device, node, start, end - start)

    def forget(self, name: str) -> None:
        """The kernel drops what it keeps of a volume that is not shown any more, its pages too. For a thread of its own. Raises OSError."""
        fuse.forget_entry(self._device, fuse.ROOT, os.fsencode(name))

    # -- the loop

    def _serve(self, device: int) -> None:
        room, bytes_of_reads = bytearray(fuse.ROOM), Room()
        while True:
            try:
                request = fuse.take(device, room)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                log.warning("take request failed reason=%r", error.strerror)
                time.sleep(_PAUSE_AFTER_ERROR)
                continue
            if request is not None:
                self._on_request(request, room, bytes_of_reads)

    def _on_request(self, request: Request, room: bytearray, bytes_of_reads: Room) -> None:
        try:
            if request.opcode == Opcode.READ:
                answer = self._read(request, room, bytes_of_reads)
            elif request.opcode in _UNANSWERED:
                if request.opcode == Opcode.INTERRUPT:
                    self._reads.interrupted(fuse.number_in(room))
                return
            else:
                answer = self._asked.get(request.opcode, _unknown)(request, room)
        except OSError as error:
            _refuse(request, error.errno or errno.EIO)
        except Malformed as error:
            log.warning("deny request opcode=%d node=%#x reason=%r", request.opcode, request.node, str(error))
            _refuse(request, errno.EIO)
        except Exception:
            log.exception("deny request opcode=%d node=%#x", request.opcode, request.node)
            _refuse(request, errno.EIO)
        else:
            if answer is not None and not _answer(request, answer) and request.opcode in _OPENING:
                self._shelf.shut(fuse.handle_of(answer))  # nobody would release it

    # -- reading

    def _read(self, request: Request, room: bytearray, bytes_of_reads: Room) -> bytes | None:
        """None: it is answered, or will be."""
        handle, offset, size, flags = fuse.read_in(room)
        length = min(size, self._shelf.opened(handle).size - offset)
        if length <= 0:
            return b""
        if length > fuse.LARGEST_READ:
            raise OSError(errno.EINVAL, f"a read of {length} bytes")
        self._reads.start(Read(request, offset, length, holds_pages=not flags & os.O_DIRECT), bytes_of_reads)
        return None

    def _open(self, request: Request, room: bytearray) -> bytes:
        if fuse.open_in(room) & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "volumes are read-only")
        with self._shelf.held(number_of(request.node)) as volume:
            size = volume.image.inode(nid_of(request.node)).size
        return fuse.open_out(self._shelf.open(Opened(request.node, size)), Open.KEEP_CACHE | Open.NOFLUSH)

    def _release(self, _: Request, room: bytearray) -> bytes:
        self._shelf.shut(fuse.number_in(room))
        return b""

    # -- the tree

    def _init(self, request: Request, room: bytearray) -> bytes:
        asked = fuse.init_in(room, request)
        if asked.major != fuse.MAJOR or asked.minor < fuse.MINOR:
            log.error(
                "the kernel speaks fuse %d.%d, and %d.%d is needed", asked.major, asked.minor, fuse.MAJOR, fuse.MINOR
            )
            raise OSError(errno.EPROTO, "too old a kernel")
        flags = asked.flags & _WANTED
        log.info("begin fuse protocol=%d.%d flags=%s", asked.major, asked.minor, flags)
        return fuse.init_out(flags, max(asked.readahead, fuse.READAHEAD))

    def _lookup(self, request: Request, room: bytearray) -> bytes:
        name = fuse.name_in(room, request)
        if request.node == fuse.ROOT:
            number = self._shelf.number(os.fsdecode(name))
            if number is None:
                raise OSError(errno.ENOENT, "no such volume")
            with self._shelf.held(number) as volume:
                return fuse.entry_out(_attributes(volume, volume.image.root), 0, _KEPT)
        with self._shelf.held(number_of(request.node)) as volume:
            nid = volume.image.lookup(nid_of(request.node), name)
            if nid is None:
                return fuse.no_entry_out(_KEPT)
            return fuse.entry_out(_attributes(volume, nid), _KEPT, _KEPT)

    def _getattr(self, request: Request, _: bytearray) -> bytes:
        if request.node == fuse.ROOT:
            return fuse.attr_out(self._root(), 0)
        with self._shelf.held(number_of(request.node)) as volume:
            return fuse.attr_out(_attributes(volume, nid_of(request.node)), _KEPT)

    def _readlink(self, request: Request, _: bytearray) -> bytes:
        with self._shelf.held(number_of(request.node)) as volume:
            return volume.image.target(nid_of(request.node))

    def _statfs(self, request: Request, _: bytearray) -> bytes:
        number = number_of(request.node)
        numbers = [number] if number else list(self._shelf.volumes().values())
        size = 0
        for each in numbers:
            with self._shelf.held(each) as volume:
                size += volume.image.capacity
        return fuse.statfs_out(size, _BLOCK)

    # -- folders

    def _opendir(self, request: Request, _: bytearray) -> bytes:
        if request.node == fuse.ROOT:
            names, flags = self._names_of_root(), Open(0)
        else:
            with self._shelf.held(number_of(request.node)) as volume:
                names, flags = _names(volume, nid_of(request.node)), Open.KEEP_CACHE | Open.CACHE_DIR
        return fuse.open_out(self._shelf.open(Opened(request.node, 0, names)), flags)

    def _readdir(self, _: Request, room: bytearray) -> bytes:
        asked = fuse.read_in(room)
        names = self._shelf.opened(asked.handle).names
        return _fitting(asked.offset, asked.size, names, lambda _: b"")

    def _readdirplus(self, request: Request, room: bytearray) -> bytes:
        asked = fuse.read_in(room)
        names = self._shelf.opened(asked.handle).names
        if request.node == fuse.ROOT:
            return _fitting(asked.offset, asked.size, names, self._volume_entry)
        with self._shelf.held(number_of(request.node)) as volume:
            return _fitting(asked.offset, asked.size, names, lambda node: _entry(volume, node))

    def _root(self) -> Attributes:
        folders = len(self._shelf.volumes())
        return Attributes(fuse.ROOT, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), 0, self._began, 2 + folders)

    def _names_of_root(self) -> Names:
        names = [(b".", fuse.ROOT, _DT_DIRECTORY), (b"..", fuse.ROOT, _DT_DIRECTORY)]
        for name, number in self._shelf.volumes().items():
            try:
                with self._shelf.held(number) as volume:
                    names.append((os.fsencode(name), node_of(number, volume.image.root), _DT_DIRECTORY))
            except OSError:  # removed meanwhile
                continue
        return names

    def _volume_entry(self, node: int) -> bytes:
        """Of the mount's root, in READDIRPLUS."""
        try:
            with self._shelf.held(number_of(node)) as volume:
                return fuse.entry_out(_attributes(volume, nid_of(node)), 0, _KEPT)
        except OSError:  # removed since it was listed
            return fuse.no_attributes()


#: They are answered with a handle.
_OPENING = frozenset({Opcode.OPEN, Opcode.OPENDIR})
#: They have no answer.
_UNANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


def _names(volume: Volume, nid: int) -> Names:
    above = volume.image.lookup(nid, b"..") if nid != volume.image.root else None
    parent = fuse.ROOT if above is None else node_of(volume.number, above)
    names = [(b".", node_of(volume.number, nid), _DT_DIRECTORY), (b"..", parent, _DT_DIRECTORY)]
    names += [(name, node_of(volume.number, below), kind) for name, below, kind in volume.image.names(nid)]
    return names


def _entry(volume: Volume, node: int) -> bytes:
    """In READDIRPLUS. Of an inode that cannot be read, none: who asks for it gets EIO, who lists the folder sees its name."""
    try:
        return fuse.entry_out(_attributes(volume, nid_of(node)), _KEPT, _KEPT)
    except Malformed:
        return fuse.no_attributes()


def _fitting(offset: int, size: int, names: Names, entry: Callable[[int], bytes]) -> bytes:
    """What of the folder's entries from place `offset` on has room in `size` bytes, each behind its `entry`. A place is the same in every
    handle."""
    answer: list[bytes] = []
    room = size
    for place in range(offset, len(names)):
        name, node, kind = names[place]
        piece = entry(node) + fuse.dirent(node, place + 1, kind, name)
        room -= len(piece)
        if room < 0:
            break
        answer.append(piece)
    return b"".join(answer)


def _attributes(volume: Volume, nid: int) -> Attributes:
    inode: Inode = volume.image.inode(nid)
    mode, uid, gid = inode.mode, inode.uid, inode.gid
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        if not stat.S_ISLNK(mode):
            mode = stat.S_IFMT(mode) | owners_mode(mode, is_folder=stat.S_ISDIR(mode))
    return Attributes(node_of(volume.number, nid), mode, uid, gid, inode.size, inode.mtime, inode.nlink)


def _unknown(request: Request, _: bytearray) -> bytes:
    raise OSError(errno.ENOSYS, f"opcode {request.opcode}")


def _answer(request: Request, answer: bytes) -> bool:
    """Whether somebody has taken it."""
    try:
        fuse.reply(request.device, request.unique, answer)
    except OSError as error:
        if error.errno not in _CALLED_OFF:
            log.warning("answer request opcode=%d failed reason=%r", request.opcode, error.strerror)
            _refuse(request, errno.EIO)
        return False
    return True


def _refuse(request: Request, code: int) -> None:
    try:
        fuse.refuse(request.device, request.unique, code)
    except OSError as error:
        if error.errno not in _CALLED_OFF:
            log.warning("refuse request opcode=%d failed reason=%r", request.opcode, error.strerror)
