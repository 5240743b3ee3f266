"""What TCP knows of a connection, and how much of it may wait to be read (tcp(7): TCP_INFO, TCP_WINDOW_CLAMP)."""

from __future__ import annotations

import socket
import struct

#: In struct tcp_info of linux/tcp.h, the round trip in microseconds.
_RTT = struct.Struct("=68xI")


def round_trip(connected: socket.socket) -> float:
    """Seconds, as measured so far; the handshake is a first sample. Raises OSError."""
    (microseconds,) = _RTT.unpack(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))
    return float(microseconds) / 1e6


def bound_window(connected: socket.socket, size: int) -> None:
    """The other side never has more than `size` bytes on the way, or here and not yet read. Raises OSError."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)
