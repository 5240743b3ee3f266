"""Connections to registries, kept alive between requests.

A connection is in one of three places: idle in the pool, lent to one answer, or closed. It comes back to the pool only
when the answer on it was read to its exact end and nothing followed; anything else closes it, so no answer is ever read
as part of another.
"""

from __future__ import annotations

import http.client
import threading
import time

from modelvold.registry.deadline import Deadline
from modelvold.registry.endpoint import Endpoint
from modelvold.registry.line import Line

#: Enough for every worker's connection to come back; load balancers drop idle ones after a minute.
_MOST_IDLE = 64
_IDLE_SECONDS = 50.0


class Connection:
    """A line with HTTP on it, used by one thread at a time; `shut` alone may be called by another."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._line = Line()
        self._http = http.client.HTTPConnection(endpoint.host, endpoint.port)
        # Storage checks signatures over the Host header, where the scheme's own port is not written.
        self._http.default_port = 443 if endpoint.context else 80
        self._http.sock = self._line
        self._response: http.client.HTTPResponse | None = None

    def dial(self, deadline: Deadline) -> None:
        """Connects. Raises OSError (ssl.SSLError among them)."""
        self._line.dial(self.endpoint, deadline)

    def request(
        self, method: str, target: str, headers: tuple[tuple[str, str], ...], timeout: float
    ) -> http.client.HTTPResponse:
        """Send, and have the answer's headers, within `timeout` seconds. Raises OSError and http.client.HTTPException."""
        self._line.wait_at_most(timeout)
        self._http.putrequest(method, target, skip_accept_encoding=True)
        for name, text in headers:
            self._http.putheader(name, text)
        self._http.endheaders()
        self._response = self._http.getresponse()
        return self._response

    def wait_at_most(self, seconds: float) -> None:
        """What is read next must be there within so many seconds, however many reads of the socket it takes."""
        self._line.wait_at_most(seconds)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer. Only for a connection without one under way; does not
        block.
        """
        self._line.wait_at_most(0)
        try:
            return self._line.receive(bytearray(1)) is None
        except OSError:
            return False

    def end_answer(self) -> bool:
        """Let go of an answer that was read to its end. False if bytes followed it, or the server will close."""
        response, self._response = self._response, None
        if response is None or response.will_close:
            return False
        self._line.wait_at_most(0)
        try:
            followed = bool(response.fp.peek(1))
        except OSError:
            return False
        response.close()
        return not followed

    def shut(self) -> None:
        """Wake whoever connects, or waits for bytes here; they get an end or an error."""
        self._line.shut()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        self._http.close()
        self._line.hang_up()


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
        connection = Connection(endpoint)
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the client is closed")
            self._lent.add(connection)
        try:
            connection.dial(deadline)
        except BaseException:
            self.discard(connection)
            raise
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
        """Close what is idle and wake whoever connects, asks or reads with the rest; each closes its own."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            lent = tuple(self._lent)
        for connection in idle:
            connection.close()
        for connection in lent:
            connection.shut()
