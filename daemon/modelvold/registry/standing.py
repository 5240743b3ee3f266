"""Which hosts failed lately: they are asked after the others for a while, so that one dead mirror does not delay every
range.
"""

from __future__ import annotations

import threading
import time

from modelvold.registry.hosts_toml import Host

#: Long beside one request, short beside an operator's patience after mending the mirror.
_REST_SECONDS = 30.0


class Standing:
    """Thread-safe. As small as the hosts that hosts.toml files name."""

    def __init__(self) -> None:
        # By address, not scheme: both ways to speak to one place rest together, so TLS stays before plain HTTP.
        self._resting: dict[str, float] = {}
        self._lock = threading.Lock()  # guards _resting

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
