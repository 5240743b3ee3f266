"""systemd's side of a service's life: what it is told, what it keeps for the next start, what it gives at this one.

Protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Where nobody listens, nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

_FIRST = 3  # SD_LISTEN_FDS_START
#: Seconds for a service manager that does not read its socket, where a message must not be lost.
_PATIENCE = 5.0
#: A life sign goes out so often within the time after which one is missed.
_SIGNS = 3


class Notify:
    """What concerns this process alone is taken out of `environ`: no child is to take it for its own."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        #: Descriptors that were kept for us, by name; ours to close.
        self.received = _received(environ)
        self._interval = _watchdog(environ) / _SIGNS
        self._next_sign = 0.0
        self.is_ready = False

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    @property
    def interval(self) -> float | None:
        """Seconds between two life signs; None where none is expected."""
        return self._interval or None

    def ready(self) -> None:
        self._send("READY=1")
        self.is_ready = True

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        """A life sign, where one is due. To be called more often than `interval`; never waits."""
        now = time.monotonic()
        if self._interval and now >= self._next_sign and self._send("WATCHDOG=1", patience=0.0):
            self._next_sign = now + self._interval

    def keep(self, name: str, descriptor: int) -> None:
        """Has `descriptor` kept, to be given back under `name` at the next start. One that can signal an error is kept all the
        same."""
        self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def drop(self, name: str) -> None:
        """What is kept under `name` is closed."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _send(self, *lines: str, descriptors: Sequence[int] = (), patience: float = _PATIENCE) -> bool:
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        if not address:
            return False
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(patience)
            manager.connect(address)
            socket.send_fds(manager, ["\n".join(lines).encode()], list(descriptors))
            return True
        return False


def _received(environ: MutableMapping[str, str]) -> dict[str, list[int]]:
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    received: dict[str, list[int]] = {}
    if pid == str(os.getpid()) and count.isdecimal():
        for number, name in zip(range(_FIRST, _FIRST + int(count)), names.split(":"), strict=False):
            received.setdefault(name, []).append(number)
    return received


def _watchdog(environ: MutableMapping[str, str]) -> float:
    """Seconds after which a life sign is missed, 0 where none is expected."""
    pid, period = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
    return int(period) / 1e6 if period.isdecimal() and pid in {"", str(os.getpid())} else 0.0
