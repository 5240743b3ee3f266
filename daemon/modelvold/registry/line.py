"""One socket to a registry, as `http.client` wants it: every wait on it has an end, and another thread can end it.

Rules:
- A wait ends at a moment, however many reads it takes: a server that sends a byte now and then, in the middle of a header or of a
  chunk's size, is given no more time than one that is silent.
- `shut` wakes whoever connects, sends or reads here. Only a name's look-up cannot be woken.
- Nothing waits in the socket, which does not block: what is there is taken at once, and `_wait` waits where nothing is, first where
  the last read left nothing there. So no read costs more than two system calls, and of TLS's records (16 KiB at most) all that have
  come are taken together.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from modelvold.linux import tcp
from modelvold.registry import endpoint as endpoints
from modelvold.registry import tunnel
from modelvold.registry.deadline import Deadline
from modelvold.registry.endpoint import Address, Endpoint
from modelvold.registry.tls import secured, shake_hands
from modelvold.registry.tunnel import Channel, Nested

_T = TypeVar("_T")
#: Bytes a second that one connection is to have at its round trip, and the bounds of the window that gives it. A transfer that is not
#: read for a while fills its window, and takes that much of the line from what somebody waits for; left to itself the kernel would
#: make windows of many megabytes of what was read at once after that. Sixteen of them are enough for any line.
_RATE, _LEAST_WINDOW, _MOST_WINDOW = 100e6, 256 << 10, 16 << 20
#: A socket, or TLS on it, would have to wait: for bytes to come, or for room to send.
_WOULD_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: TLS may have to send before it can read, and the other way round.
_EVENTS: dict[type[OSError], int] = {ssl.SSLWantReadError: select.POLLIN, ssl.SSLWantWriteError: select.POLLOUT}


class Line:
    """Used by one thread at a time; `shut` alone may be called by another."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None  # has the descriptor
        self._channel: Channel | None = None  # what is said goes by this: the socket itself, but for TLS within TLS
        self._until = 0.0
        self._poll = select.poll()
        self._failure: OSError | None = None  # to be told when what came before it has been read
        self._is_dry = False  # nothing was there after the last read
        self._window, self._came = _LEAST_WINDOW, 0  # and what has come since it was bounded
        self._is_shut = False
        self._lock = threading.Lock()  # guards closing against shut: a descriptor once closed may be somebody else's

    def dial(self, endpoint: Endpoint, deadline: Deadline) -> None:
        """Connects. Raises OSError (ssl.SSLError and ProxyError among them)."""
        via = endpoint.via
        if via is None:
            self._reach(endpoint.host, endpoint.port, endpoint.context, deadline)
            return
        with tunnel.on_the_way(via.proxy):
            self._reach(via.proxy.host, via.proxy.port, via.context, deadline)
        if endpoint.context is not None:
            with tunnel.on_the_way(via.proxy):
                tunnel.open_through(self, via.proxy, endpoint.host, endpoint.port)
            self._secure(endpoint.context, endpoint.host, endpoint.port)

    def wait_at_most(self, seconds: float) -> None:
        """What is sent and read from now on must be so within so many seconds, all told; 0: what can be at once."""
        self._until = time.monotonic() + seconds if seconds else 0.0

    def receive(self, buffer: Any) -> int | None:
        """As a raw file's `readinto`: bytes as soon as there are any, 0 at the end, None where none are there and nobody would
        wait. Raises OSError, TimeoutError among them."""
        while True:
            channel = self._open()
            if self._failure is not None:
                raise self._failure
            if self._until:
                left = self._until - time.monotonic()
                if left <= 0 or (self._is_dry and not self._poll.poll(left * 1000)):
                    raise TimeoutError
            try:
                got = channel.recv_into(buffer)
            except _WOULD_WAIT as why:
                if not self._until:
                    return None
                if isinstance(why, ssl.SSLWantWriteError):
                    self._wait(select.POLLOUT)
                else:
                    self._is_dry = True
                continue
            if got and isinstance(self._socket, ssl.SSLSocket):
                got += self._more(channel, memoryview(buffer)[got:])
            else:
                self._is_dry = got < len(buffer)
            self._bound(got)
            return got

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

    def sendall(self, message: bytes) -> None:
        rest = memoryview(message)
        while rest:
            rest = rest[self._send(rest) :]
        if isinstance(over := self._channel, Nested):
            self._do(lambda _: over.flush(), select.POLLOUT)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        """`http.client` closes where the server will, and a body is still to be read: `hang_up` is ours to say."""

    # -- how

    def _open(self) -> Channel:
        if self._channel is None:
            raise ConnectionAbortedError("the connection was given up")
        return self._channel

    def _do(self, act: Callable[[Channel], _T], events: int = select.POLLIN) -> _T:
        """As soon as it can be done, before the moment has come."""
        while True:
            try:
                return act(self._open())
            except _WOULD_WAIT as why:
                self._wait(_EVENTS.get(type(why), events))

    def _send(self, message: memoryview) -> int:
        return self._do(lambda channel: channel.send(message), select.POLLOUT)

    def _wait(self, events: int) -> None:
        waiting, left = select.poll(), self._until - time.monotonic()
        waiting.register(self._connected(), events)
        if left <= 0 or not waiting.poll(left * 1000):
            raise TimeoutError

    def _more(self, channel: Channel, rest: memoryview) -> int:
        """Into `rest`, further records of TLS that are here already."""
        came, self._is_dry = 0, False
        while room := rest[came:]:
            try:
                got = channel.recv_into(room)
            except _WOULD_WAIT:
                self._is_dry = True
                break
            except OSError as error:  # of which whoever comes next is told
                self._failure = error
                break
            if not got:
                break
            came += got
        return came

    def _reach(self, host: str, port: int, context: ssl.SSLContext | None, deadline: Deadline) -> None:
        """The first of the host's addresses that answers."""
        failure = OSError(f"{host} has no address")
        found = endpoints.look_up(host, port)
        for n, (family, kind, protocol, address) in enumerate(found):
            try:
                share = deadline.share(len(found) - n)
                self._connect(socket.socket(family, kind, protocol), address, share)
                self.wait_at_most(deadline.left())
                if context is not None:
                    self._secure(context, host, port)
            except OSError as error:
                failure = error
                self._drop()
            else:
                return
        raise failure

    def _connect(self, connecting: socket.socket, address: Address, deadline: Deadline) -> None:
        self._take(connecting)
        connecting.settimeout(deadline.left())
        connecting.connect(address)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._window = max(_LEAST_WINDOW, min(_MOST_WINDOW, int(_RATE * tcp.round_trip(connecting))))
        tcp.bound_window(connecting, self._window)
        connecting.setblocking(False)

    def _secure(self, context: ssl.SSLContext, host: str, port: int) -> None:
        """The handshake is made on what `shut` finds."""
        over: ssl.SSLSocket | Nested
        below = self._connected()
        if isinstance(below, ssl.SSLSocket):
            self._channel = over = tunnel.nested(context, below, host)
        else:
            with self._lock:
                self._socket = self._channel = None
            over = secured(context, below, host)
            self._take(over)
        shake_hands(lambda: self._do(lambda _: over.do_handshake()), host, port)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionAbortedError("the connection was given up")
        return self._socket

    def _bound(self, got: int) -> None:
        """Once for each window that has come: the kernel widens it when much is read at once."""
        self._came += got
        if self._came >= self._window and self._socket is not None:
            self._came = 0
            with contextlib.suppress(OSError):  # of one that has ended; what has come is told first
                tcp.bound_window(self._socket, self._window)

    def _take(self, made: socket.socket) -> None:
        with self._lock:
            if not self._is_shut:
                self._socket = self._channel = made
                self._poll, self._is_dry, self._failure = select.poll(), False, None
                self._poll.register(made, select.POLLIN)
                return
        made.close()
        raise ConnectionAbortedError("the connection was given up")

    def _drop(self) -> None:
        with self._lock:
            old, self._socket, self._channel = self._socket, None, None
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
