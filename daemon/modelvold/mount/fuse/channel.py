"""One end of the connection between the daemon and the process that serves FUSE: a thread reads it, another one writes it.

Saying never waits for the other side: the gate's loop says answers, and a process that is stopped must not stop the gate. What is
not taken piles up to a bound; beyond it the connection ends, as when the other side dies.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from modelvold.errors import Malformed
from modelvold.mount.fuse import wire
from modelvold.mount.fuse.wire import Message

log = logging.getLogger(__name__)

_PIECE = 1 << 18
_CREDENTIALS = struct.Struct("3i")
#: Bytes said and not taken yet.
_MOST_UNSAID = 256 << 20


def peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and the uid of who is at the other end, as they were when it connected or listened."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class Channel:
    """`on_message` is called for one message after another, `on_end` once, both by the reading thread. `connection` becomes ours."""

    def __init__(
        self, connection: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[], None], name: str
    ) -> None:
        self._connection = connection
        self._on_message = on_message
        self._on_end = on_end
        self._said = threading.Condition()  # guards _unsaid and _is_ended
        self._unsaid = bytearray()
        self._is_ended = False
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{what}", daemon=True)
            for target, what in ((self._read, "read"), (self._write, "write"))
        ]

    def start(self) -> None:
        """The one that writes first: the other one, which may end at once, waits for its end."""
        for thread in reversed(self._threads):
            thread.start()

    def say(self, *messages: Message) -> bool:
        """In this order. Returns at once; False once the connection has ended, when nobody hears it."""
        data = b"".join(map(wire.packed, messages))
        with self._said:
            if self._is_ended:
                return False
            self._unsaid += data
            is_too_much = len(self._unsaid) > _MOST_UNSAID
            self._said.notify()
        if is_too_much:
            log.error("end connection reason='the other side takes nothing' bytes=%d", len(self._unsaid))
            self.end()
        return True

    def end(self) -> None:
        """From now on nothing is said or heard. `on_end` follows. May be called more than once, by any thread."""
        with self._said:
            self._is_ended = True
            self._said.notify()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """`end`, and waits for the threads, but for the caller's own."""
        self.end()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join()

    def _read(self) -> None:
        unpacking = wire.Unpacking()
        try:
            while data := self._connection.recv(_PIECE):
                for message in unpacking.feed(data):
                    self._on_message(message)
        except Malformed as failure:
            log.error("end connection reason=%r", failure.message)  # noqa: TRY400 — theirs, not ours
        except OSError as error:
            log.debug("connection ended error=%s", error)
        except Exception:
            log.exception("end connection")
        finally:
            self.end()
            self._threads[1].join()
            self._connection.close()
            self._on_end()

    def _write(self) -> None:
        with suppress(OSError):
            while data := self._next():
                self._connection.sendall(data)
        self.end()

    def _next(self) -> bytes:
        """What is to be written; empty at the end."""
        with self._said:
            while not self._unsaid and not self._is_ended:
                self._said.wait()
            if self._is_ended:
                return b""
            data, self._unsaid = bytes(self._unsaid), bytearray()
            return data
