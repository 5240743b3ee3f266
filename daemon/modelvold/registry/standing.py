"""Which hosts failed lately: they are asked after the others for a while, so that one dead mirror does not delay every
range. And which asked to be left alone, for how long and with what words.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from modelvold.registry.hosts_toml import Host

#: Long beside one request, short beside an operator's patience after mending the mirror.
_REST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Until when (monotonic) a host asked to be left alone, and what it `said`."""

    until: float
    said: str
    remedy: str

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


class Standing:
    """Thread-safe. As small as the hosts that hosts.toml files name."""

    def __init__(self) -> None:
        # By address, not scheme: both ways to speak to one place rest together, so TLS stays before plain HTTP.
        self._resting: dict[str, float] = {}
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()  # guards both

    def order(self, hosts: tuple[Host, ...]) -> tuple[Host, ...]:
        """`hosts` in their order, those that failed lately last."""
        now = time.monotonic()
        with self._lock:
            self._resting = {address: until for address, until in self._resting.items() if until > now}
            resting = frozenset(self._resting)
        return tuple(sorted(hosts, key=lambda host: host.address in resting))

    def fail(self, host: Host) -> None:
        with self._lock:
            self._resting[host.address] = time.monotonic() + _REST_SECONDS

    def succeed(self, host: Host) -> None:
        with self._lock:
            self._resting.pop(host.address, None)

    def hold(self, host: Host, seconds: float, said: str, remedy: str) -> None:
        """It asks to be left alone for so long."""
        with self._lock:
            self._holds[host.address] = Hold(time.monotonic() + seconds, said, remedy)

    def held(self, host: Host) -> Hold | None:
        """What it asked for, while that lasts."""
        with self._lock:
            hold = self._holds.get(host.address)
        return hold if hold is not None and hold.left > 0 else None
