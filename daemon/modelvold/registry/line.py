"""One socket to a registry, as `http.client` wants it: every wait on it has an end, and another thread can end it.

Rules:
- A wait ends at a moment, however many reads it takes: a server that sends a byte now and then, in the middle of a header or of a
  chunk's size, is given no more time than one that is silent.
- `shut` wakes whoever connects, sends or reads here. Only a name's look-up cannot be woken.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any

from modelvold.registry.deadline import Deadline
from modelvold.registry.tls import secured, shake_hands

_Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads. `context` is None for plain HTTP, and compares by identity: other trust, other
    connections.
    """

    host: str
    port: int
    context: ssl.SSLContext | None


class Line:
    """Used by one thread at a time; `shut` alone may be called by another."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._until = 0.0
        self._is_shut = False
        self._lock = threading.Lock()  # guards closing against shut: a descriptor once closed may be somebody else's

    def dial(self, endpoint: Endpoint, deadline: Deadline) -> None:
        """Connects. Raises OSError (ssl.SSLError among them)."""
        failure = OSError(f"{endpoint.host} has no address")
        found = _addresses(endpoint)
        for n, (family, kind, protocol, address) in enumerate(found):
            try:
                self._connect(socket.socket(family, kind, protocol), address, deadline.share(len(found) - n))
                if endpoint.context is not None:
                    self._secure(endpoint.context, endpoint, deadline)
            except OSError as error:
                failure = error
                self._drop()
            else:
                return
        raise failure

    def wait_at_most(self, seconds: float) -> None:
        """What is sent and read from now on must be so within so many seconds, all told; 0: what can be at once."""
        self._until = time.monotonic() + seconds if seconds else 0.0

    def receive(self, buffer: Any) -> int | None:
        """As a raw file's `readinto`: bytes as soon as there are any, 0 at the end, None where none are there and nobody would
        wait. Raises OSError, TimeoutError among them."""
        try:
            return self._ready().recv_into(buffer)
        except BlockingIOError:
            return None

    def shut(self) -> None:
        """Wakes whoever waits here: they get an end or an error, and so does whoever comes later."""
        with self._lock:
            self._is_shut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not SSLSocket.shutdown, which would turn what is still buffered into bytes that look like content.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Idempotent."""
        with self._lock:
            self._is_shut = True
        self._drop()

    # -- http.client takes it for a socket

    def sendall(self, message: Any) -> None:
        self._ready().sendall(message)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        """`http.client` closes where the server will, and a body is still to be read: `hang_up` is ours to say."""

    # -- how

    def _ready(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionAbortedError("the connection was given up")
        left = self._until - time.monotonic() if self._until else 0.0
        if self._until and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket

    def _connect(self, connecting: socket.socket, address: _Address, deadline: Deadline) -> None:
        self._take(connecting)
        connecting.settimeout(deadline.left())
        connecting.connect(address)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _secure(self, context: ssl.SSLContext, endpoint: Endpoint, deadline: Deadline) -> None:
        """The handshake is made on what `shut` finds."""
        with self._lock:
            plain, self._socket = self._socket, None
        assert plain is not None  # noqa: S101 — it was connected just now, and we alone let go of it
        plain.settimeout(deadline.left())
        over = secured(context, plain, endpoint.host)
        self._take(over)
        shake_hands(over, endpoint.host, endpoint.port)

    def _take(self, made: socket.socket) -> None:
        with self._lock:
            if not self._is_shut:
                self._socket = made
                return
        made.close()
        raise ConnectionAbortedError("the connection was given up")

    def _drop(self) -> None:
        with self._lock:
            old, self._socket = self._socket, None
        if old is not None:
            old.close()


class _Incoming(io.RawIOBase):
    """What comes over a line, as a file."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        return self._line.receive(buffer)


def _addresses(endpoint: Endpoint) -> list[tuple[int, int, int, _Address]]:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a redirect may name anything
        raise OSError(f"{endpoint.host} is no host's name") from error
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
