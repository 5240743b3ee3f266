"""Connections to registries, kept alive between requests.

A connection is in one of three places: idle in the pool, lent to one answer, or closed. It comes back to the pool only
when the answer on it was read to its exact end and nothing followed; anything else closes it, so no answer is ever read
as part of another.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass

from modelvold.registry.deadline import Deadline
from modelvold.registry.tls import shake_hands

#: Enough for every worker's connection to come back; load balancers drop idle ones after a minute.
_MOST_IDLE = 64
_IDLE_SECONDS = 50.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads. `context` is None for plain HTTP, and compares by identity: other trust, other
    connections.
    """

    host: str
    port: int
    context: ssl.SSLContext | None


class Connection:
    """One socket with HTTP on it, used by one thread at a time; `shut` alone may be called by another."""

    def __init__(self, endpoint: Endpoint, deadline: Deadline) -> None:
        """Connects. Raises OSError (ssl.SSLError among them)."""
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._socket = _dial(endpoint, deadline)
        self._line = http.client.HTTPConnection(endpoint.host, endpoint.port)
        self._line.sock = self._socket
        self._response: http.client.HTTPResponse | None = None
        self._lock = threading.Lock()  # guards closing against shut: a descriptor once closed may be somebody else's
        self._closed = False

    def request(
        self, method: str, target: str, headers: tuple[tuple[str, str], ...], timeout: float
    ) -> http.client.HTTPResponse:
        """Send and wait at most `timeout` seconds in each step. Raises OSError and http.client.HTTPException."""
        self._socket.settimeout(timeout)
        self._line.putrequest(method, target, skip_accept_encoding=True)
        for name, text in headers:
            self._line.putheader(name, text)
        self._line.endheaders()
        self._response = self._line.getresponse()
        return self._response

    def wait_at_most(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer. Only for a connection without one under way; does not
        block.
        """
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def end_answer(self) -> bool:
        """Let go of an answer that was read to its end. False if bytes followed it, or the server will close."""
        response, self._response = self._response, None
        if response is None or response.will_close:
            return False
        self._socket.settimeout(0)
        try:
            followed = bool(response.fp.peek(1))
        except ssl.SSLWantReadError:
            followed = False
        except OSError:
            return False
        response.close()
        return not followed

    def shut(self) -> None:
        """Wake whoever waits for bytes here; they get an end or an error."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    # Not SSLSocket.shutdown, which would turn what is still buffered into bytes that look like content.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._response is not None:
                self._response.close()
            self._line.close()
            self._socket.close()


class Pool:
    """Opens connections, keeps idle ones, and closes all of them at its end. Thread-safe."""

    def __init__(self) -> None:
        self._idle: list[Connection] = []  # the longest idle first
        self._lent: set[Connection] = set()
        self._closed = False
        self._lock = threading.Lock()  # guards the three above

    def take(self, endpoint: Endpoint) -> Connection | None:
        """An idle connection that the server has not closed meanwhile, the most recently used first."""
        while True:
            with self._lock:
                connection = next((c for c in reversed(self._idle) if c.endpoint == endpoint), None)
                if connection is None:
                    return None
                self._idle.remove(connection)
                self._lent.add(connection)
            fresh = time.monotonic() - connection.idle_since < _IDLE_SECONDS
            if fresh and connection.is_quiet():
                return connection
            self.discard(connection)

    def open(self, endpoint: Endpoint, deadline: Deadline) -> Connection:
        """A new connection. Raises OSError."""
        connection = Connection(endpoint, deadline)
        with self._lock:
            closed = self._closed
            if not closed:
                self._lent.add(connection)
        if closed:
            connection.close()
            raise ConnectionAbortedError("the client is closed")
        return connection

    def give(self, connection: Connection) -> None:
        """Take back a connection whose answer has been read to its end."""
        if not connection.end_answer():
            self.discard(connection)
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            self._lent.discard(connection)
            self._idle.append(connection)
            surplus = self._idle if self._closed else self._idle[:-_MOST_IDLE]
            self._idle = [] if self._closed else self._idle[-_MOST_IDLE:]
        for one in surplus:
            one.close()

    def discard(self, connection: Connection) -> None:
        with self._lock:
            self._lent.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close what is idle and wake whoever reads from the rest; each reader closes its own."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            lent = tuple(self._lent)
        for connection in idle:
            connection.close()
        for connection in lent:
            connection.shut()


def _dial(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    failure = OSError(f"{endpoint.host} has no address")
    for n, (family, kind, protocol, _, target) in enumerate(found):
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.settimeout(deadline.share(len(found) - n).left())
            connecting.connect(target)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.context is None:
                return connecting
            connecting.settimeout(deadline.left())
            return shake_hands(endpoint.context, connecting, endpoint.host, endpoint.port)
        except OSError as error:
            connecting.close()
            failure = error
        except BaseException:
            connecting.close()
            raise
    raise failure
