"""The body of one answer, as HTTP frames it (RFC 9112 §6, §7.1): the one place that reads from a registry's
connection.

`http.client` reads status and headers; the body is read here, from its buffered file, because `HTTPResponse.readinto`
waits until a whole buffer is full while readers wait for its beginning, and forgets what follows an answer's end.
"""

from __future__ import annotations

import http.client
import re
import threading

from modelvold.registry.connection import Connection, Pool
from modelvold.registry.deadline import Deadline

#: What a refusal or a redirect says about itself; reading more costs more than a new connection.
_SMALL = 64 << 10
_LONGEST_LINE = 4096
_MOST_TRAILERS = 64
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")


class Stream:
    """Read by one thread; `abort` may be called by any. `finish` or `discard` must follow, and may follow twice."""

    def __init__(
        self, pool: Pool, connection: Connection, response: http.client.HTTPResponse, *, bodiless: bool
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._file = response.fp
        self._chunked = bool(response.chunked) and not bodiless
        self._left = 0 if bodiless else None if self._chunked else response.length
        self._chunk_left = 0
        self._between_chunks = False
        self._ended = self._left == 0
        self._is_buffer_empty = False  # known only once a peek has been read to its end; reading a line undoes it
        self._lock = threading.Lock()  # guards _connection against abort after it was given back

    @property
    def length(self) -> int | None:
        """Bytes still to come as the server declared them; None where it did not."""
        return self._left

    def readinto(self, view: memoryview, timeout: float) -> int:
        """Bytes put into `view` (which is not empty), as soon as there are any; 0 at the end.

        Waits at most `timeout` seconds. Raises OSError (TimeoutError for silence, ConnectionResetError for an end
        before the declared one) and http.client.HTTPException.
        """
        if self._ended:
            return 0
        connection = self._connection
        if connection is None:
            raise ConnectionAbortedError("the connection was given up")
        connection.wait_at_most(timeout)
        got = self._read_chunked(view) if self._chunked else self._read_plain(view)
        self._ended = got == 0 or self._left == 0
        return got

    def finish(self) -> None:
        """Done. The connection is kept for others if, and only if, the body was read to its exact end."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._ended:
            self._pool.give(connection)
        else:
            self._pool.discard(connection)

    def settle(self, deadline: Deadline) -> bytes:
        """Done with an answer of which only the status counts: up to 64 KiB of its body, so that the connection lives
        on.

        Never raises: what cannot be read in time ends the connection.
        """
        body = bytearray()
        piece = memoryview(bytearray(_SMALL))
        try:
            while len(body) <= _SMALL and (got := self.readinto(piece, deadline.left())):
                body += piece[:got]
        except (OSError, http.client.HTTPException):
            self.discard()
        self.finish()
        return bytes(body)

    def discard(self) -> None:
        """Done, and the connection is not to be trusted with another request."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.discard(connection)

    def abort(self) -> None:
        """Wake the reader, from any thread."""
        with self._lock:
            if self._connection is not None:
                self._connection.shut()

    def _read_plain(self, view: memoryview) -> int:
        got = self._read_some(view if self._left is None else view[: self._left])
        if self._left is not None:
            if got == 0:
                raise ConnectionResetError("the connection ended early")
            self._left -= got
        return got

    def _read_chunked(self, view: memoryview) -> int:
        if self._chunk_left == 0:
            self._chunk_left = self._next_chunk()
            if self._chunk_left == 0:
                return 0
        got = self._read_some(view[: self._chunk_left])
        if got == 0:
            raise ConnectionResetError("the connection ended early")
        self._chunk_left -= got
        return got

    def _read_some(self, view: memoryview) -> int:
        """What the buffer holds, else one read of the socket, straight into `view`.

        Not `readinto1`: with a large view it waits for the socket though the buffer has bytes, and a time-out loses
        them.
        """
        if not self._is_buffer_empty:
            ahead = len(self._file.peek(1))
            got = self._file.readinto(view[:ahead]) if ahead else 0
            self._is_buffer_empty = got == ahead
            return got
        return self._file.raw.readinto(view) or 0

    def _next_chunk(self) -> int:
        """The next chunk's size in bytes; at 0 the trailers are read too."""
        self._is_buffer_empty = False
        if self._between_chunks and self._file.readline(3) not in {b"\r\n", b"\n"}:
            raise http.client.HTTPException("a chunk is longer than its size")
        self._between_chunks = True
        form = _CHUNK_SIZE.fullmatch(self._file.readline(_LONGEST_LINE))
        if form is None:
            raise http.client.HTTPException("a chunk has no size")
        size = int(form[1], 16)
        for _ in range(_MOST_TRAILERS if size == 0 else 0):
            if self._file.readline(_LONGEST_LINE) in {b"\r\n", b"\n", b""}:
                return 0
        if size == 0:
            raise http.client.HTTPException("too many trailers")
        return size
