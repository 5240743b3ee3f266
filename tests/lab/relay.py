"""A registry far away: a TCP relay on loopback before one of its ports, that lets every byte arrive later (this kernel has no netem).

The rules:

- Each way delays by half of the round trip. What has been read gets the time at which it is due, and the next is read
  meanwhile: bandwidth is not reduced, until what is under way reaches the `window`, as TCP's.
- Opening costs one round trip before the first byte, as the exchange of SYNs does; the asker's own `connect` returns at
  once. A registry that does not answer is seen as a connection that ends at once.
- Ends travel as bytes do: one side's FIN, or its going away, is known to the other half a round trip later.
- `rate`, in bytes a second, is that of one link each way, which all connections share; it holds no queue to speak of.
- What a real line has beside: slow start (a cold connection gets its first 256 KiB in four or five round trips, not in
  one), loss, jitter. So times taken through this are lower bounds.

One thread serves all: a `select` whose time-outs are as fine as microseconds (epoll's are whole milliseconds) over the few
sockets of a test.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

#: At 10 ms a way 3 GB/s, more than this loop moves.
_WINDOW = 32 << 20
#: What the kernel holds beside a window that was named, so that it is one. (Less than some segments of loopback, and TCP stalls.)
_BESIDE = 128 << 10
_PIECE = 256 << 10
#: How long a rated link may be busy ahead: the time that the loop takes to come round.
_AHEAD = 0.002


class Relay:
    """`with Relay(registry.port) as relay:`; then `relay.host` stands in references for the registry's host.

    `round_trip` in seconds; `window`: what one way of a connection holds at most, in bytes.
    """

    def __init__(self, port: int, round_trip: float = 0.02, rate: float | None = None, window: int = _WINDOW) -> None:
        self.target = port
        self.round_trip = round_trip
        self.rate = rate
        self.window = window
        self.port = 0
        self._links = (_Link(rate), _Link(rate))
        self._connections: list[_Connection] = []
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None

    @property
    def host(self) -> str:
        """As it stands in a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Open now, or not yet known to be at their end on both sides."""
        return len(self._connections)

    def hurry(self, rate: float | None) -> None:
        """From now on the line has this rate."""
        self.rate = rate
        for link in self._links:
            link.rate = rate

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._waker, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(listener, woken), name=f"relay-{self.port}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waker and self._thread:
            self._waker.close()
            self._thread.join()

    def _run(self, listener: socket.socket, woken: socket.socket) -> None:
        with listener, woken:
            try:
                while self._turn(listener, woken):
                    pass
            finally:
                for connection in self._connections:
                    connection.close()

    def _turn(self, listener: socket.socket, woken: socket.socket) -> bool:
        """What is due goes out, what has come is taken. False at the end."""
        now = time.monotonic()
        for connection in self._connections:
            connection.deliver(now)
        alive = [connection for connection in self._connections if not connection.is_closed]
        self._connections = [*alive[1:], *alive[:1]]  # nobody is always the first at a rated link
        ways = [way for connection in self._connections for way in connection.ways]
        due = min((when for way in ways if (when := way.next_time(now)) is not None), default=None)
        readable, _, _ = select.select(
            [listener, woken, *(way.source for way in ways if way.is_hungry(now))],
            [way.sink for way in ways if way.is_blocked],
            [],
            None if due is None else max(0.0, due - time.monotonic()),
        )
        for way in ways:
            way.is_blocked = False  # the next delivery tells
            if way.source in readable and way.is_hungry(now := time.monotonic()):
                way.take(now)
        if listener in readable:
            self._accept(listener)
        return woken not in readable

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except OSError:  # whoever it was has gone
            return
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=1)
        except OSError:
            near.close()
            return
        if self.window < _WINDOW:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BESIDE)
        self._connections.append(_Connection(near, far, self.round_trip, self._links, self.window))


class _Link:
    """One direction of the line: bytes leave one after another where there is a `rate`."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self.free_at = 0.0

    @property
    def piece(self) -> int:
        """Bytes to take at once."""
        return min(_PIECE, max(1500, int(self.rate * _AHEAD))) if self.rate else _PIECE

    def pass_on(self, size: int, now: float) -> float:
        """When the last of `size` bytes has left."""
        self.free_at = max(now, self.free_at) + (size / self.rate if self.rate else 0)
        return self.free_at


class _Connection:
    """Two sockets and the two ways between them."""

    def __init__(
        self, near: socket.socket, far: socket.socket, round_trip: float, links: tuple[_Link, _Link], window: int
    ) -> None:
        self.is_closed = False
        self._half = round_trip / 2
        self._sockets = (near, far)
        for one in self._sockets:
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The asker may write when its SYN was answered, the registry when that answer was acknowledged.
        opened = time.monotonic() + round_trip
        self.ways = (
            _Way(near, far, opened, self._half, links[0], window),
            _Way(far, near, opened + self._half, self._half, links[1], window),
        )

    def deliver(self, now: float) -> None:
        for way, other in (self.ways, self.ways[::-1]):
            way.deliver(now)
            if way.is_broken and not other.is_cut:
                other.cut(now)
        if any(way.is_cut and way.is_done for way in self.ways) or all(way.is_done for way in self.ways):
            self.close()

    def close(self) -> None:
        self.is_closed = True
        for one in self._sockets:
            one.close()


class _Way:
    """From `source` to `sink`. `is_hungry` while more may be read, `is_blocked` while the sink takes nothing, `is_broken` once it
    never will again, `is_cut` once the source's end means the whole connection's, `is_done` when that end has arrived."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, opened: float, delay: float, link: _Link, window: int
    ) -> None:
        self.source = source
        self.sink = sink
        self.is_blocked = False
        self.is_broken = False
        self.is_cut = False
        self.is_done = False
        self._opened = opened
        self._delay = delay
        self._link = link
        self._window = window
        self._has_ended = False
        #: What is under way, with the times at which it is due; the end is an empty piece.
        self._pieces: deque[tuple[float, memoryview]] = deque()
        self._held = 0

    def is_hungry(self, now: float) -> bool:
        return not self._has_ended and self._held < self._window and self._link.free_at <= now + _AHEAD

    def next_time(self, now: float) -> float | None:
        """When there is something to do that no socket tells: the first piece is due, or the link is free again."""
        times = [self._pieces[0][0]] if self._pieces and not self.is_blocked else []
        if self._link.free_at > now + _AHEAD:
            times.append(self._link.free_at - _AHEAD)
        return min(times, default=None)

    def take(self, now: float) -> None:
        try:
            piece = self.source.recv(self._link.piece)
        except BlockingIOError:
            return
        except OSError:
            self.cut(now)
            return
        self._has_ended = not piece
        self._append(piece, now)

    def cut(self, now: float) -> None:
        """The source is gone, and takes nothing more either."""
        self.is_cut = self._has_ended = True
        self.is_done = False
        self._append(b"", now)

    def deliver(self, now: float) -> None:
        try:
            while self._pieces and self._pieces[0][0] <= now:
                self._send_first()
        except BlockingIOError:
            self.is_blocked = True
        except OSError:
            self.is_broken = self.is_done = self._has_ended = True
            self._pieces.clear()

    def _append(self, piece: bytes, now: float) -> None:
        left = self._link.pass_on(len(piece), now)
        self._pieces.append((max(left, self._opened) + self._delay, memoryview(piece)))
        self._held += len(piece)

    def _send_first(self) -> None:
        due, piece = self._pieces[0]
        if piece:
            sent = self.sink.send(piece)
            self._held -= sent
            rest: Iterable[tuple[float, memoryview]] = [(due, piece[sent:])] if sent < len(piece) else []
        else:
            self.sink.shutdown(socket.SHUT_WR)
            self.is_done, rest = True, []
        self._pieces.popleft()
        self._pieces.extendleft(rest)
