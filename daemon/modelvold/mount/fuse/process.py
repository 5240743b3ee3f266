"""The process that serves FUSE: one mount, a folder for each volume, bytes from segment files; what is missing is asked of the daemon.

It holds no state that would be worth saving: what is shown, and how far it may be read, is told by the daemon that comes. While none is
there, what was told goes on to be true, for only a daemon appends and truncates. It ends when nothing of its mount is left anywhere.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from modelvold.errors import Failure
from modelvold.mount.fuse import mounting, wire
from modelvold.mount.fuse.channel import Channel, peer
from modelvold.mount.fuse.files import Files
from modelvold.mount.fuse.kernel import Kernel
from modelvold.mount.fuse.line import Place
from modelvold.mount.fuse.reads import Reads
from modelvold.mount.fuse.shelf import Shelf, node_of
from modelvold.mount.fuse.wire import (
    Answer,
    Ask,
    Done,
    Drop,
    Hello,
    Hide,
    Message,
    Ping,
    Serve,
    Show,
    Shown,
    Welcome,
    Withdraw,
)

log = logging.getLogger(__name__)

#: Seconds that a read waits for a daemon that has never come.
_PATIENCE = 60.0


def run(place: Place) -> int:
    """Mounts, listens, and serves until the mount has gone. Raises OSError where it cannot begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's, meant for the daemon
    device = mounting.mount(place.mount, place.label)
    files = Files()
    desk = _Desk(Shelf(files), files, mounting.device_at(place.mount))
    desk.kernel = Kernel(device, desk.shelf, desk.reads)
    with desk.reads:
        for name, work in (("listen", partial(desk.listen, _listen(place.socket))), ("drop", desk.drop_pages)):
            threading.Thread(target=work, name=f"fuse-{name}", daemon=True).start()
        log.info("serve mount=%s device=%s", place.mount, desk.device)
        desk.kernel.run()
    log.info("end mount=%s reason='nobody has it any more'", place.mount)
    return 0


class _Desk:
    """Between the daemon that is here, if one is, and the reads. One daemon at a time: the last one to come."""

    kernel: Kernel

    def __init__(self, shelf: Shelf, files: Files, device: str) -> None:
        self.shelf = shelf
        self.device = device
        self.reads = Reads(shelf, files, self, deadline=_PATIENCE)
        self._dropping: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _channel
        self._channel: Channel | None = None

    def ask(self, number: int, inode: int, need: int, pid: int) -> None:
        """See `reads.Asker`."""
        self._say(Ask(number, inode, need, pid))

    def withdraw(self, number: int) -> None:
        """See `reads.Asker`."""
        self._say(Withdraw(number))

    def listen(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            if peer(connection)[1] in {0, os.geteuid()}:
                self._welcome(connection)
            else:
                connection.close()

    def _welcome(self, connection: socket.socket) -> None:
        def on_end() -> None:
            with self._lock:
                is_current = self._channel is channel
                if is_current:
                    self._channel = None
            if is_current:
                log.warning("lost daemon waiting=%d", self.reads.waiting())
                self.reads.disconnected()

        channel = Channel(connection, self._on_message, on_end, "fuse")
        with self._lock:
            former, self._channel = self._channel, channel
        if former is not None:
            former.close()
            self.reads.disconnected()
        channel.start()

    def _on_message(self, message: Message) -> None:
        match message:
            case Answer(number, shown, is_allowed):
                self.reads.answered(number, is_allowed, shown)
            case Shown(pairs):
                self.reads.shown(pairs)
            case Show(serial, volume, image, folders):
                where = [(Path(folder), count) for folder, count in folders]
                self._do(serial, lambda: self.shelf.add(volume, Path(image), where))
            case Hide(serial, volume):
                self._do(serial, lambda: self._hide(volume))
            case Ping(serial):
                self._say(Done(serial, 0, ""))
            case Drop():
                self._dropping.put(partial(self._drop, message))
            case Hello(_, deadline):
                self.reads.deadline = deadline
                self._say(Welcome(wire.VERSION, os.getpid(), self.device, tuple(self.shelf.volumes())))
            case Serve():
                self.reads.connected()
            case _:
                log.error("ignore message=%s", type(message).__name__)

    def _hide(self, volume: str) -> None:
        self.shelf.remove(volume)
        self._dropping.put(partial(self.kernel.forget, volume))

    def _do(self, serial: int, what: Callable[[], object]) -> None:
        try:
            what()
        except OSError as error:
            self._say(Done(serial, error.errno or errno.EIO, str(error)))
        except Failure as failure:
            self._say(Done(serial, errno.EUCLEAN, str(failure)))
        else:
            self._say(Done(serial, 0, ""))

    def _say(self, message: Message) -> None:
        channel = self._channel
        if channel is not None:
            channel.say(message)

    def _node(self, volume: str, path: bytes) -> int | None:
        number = self.shelf.number(volume)
        if number is None:
            return None
        with self.shelf.held(number) as shown:
            nid = shown.image.walk(path)
        return None if nid is None else node_of(number, nid)

    def drop_pages(self) -> None:
        """One after the other: each waits for reads that are under way."""
        while True:
            drop = self._dropping.get()
            try:
                drop()
            except Exception:  # the next ones are to be dropped all the same
                log.exception("drop pages failed")

    def _drop(self, message: Drop) -> None:
        for path, start, end in message.pieces:
            node = self._node(message.volume, os.fsencode(path))
            if node is not None:
                self.kernel.invalidate(node, start, end - start)


def _listen(path: Path) -> socket.socket:
    """It is there under its name when it can be connected to."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(aside))
    finally:
        os.umask(before)
    listener.listen()
    aside.rename(path)
    return listener
