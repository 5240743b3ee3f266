"""Where a host sent us for a blob, so that the next range of it is asked for there at once.

Rules:
- A shortcut serves the question that was answered by it and no other: the same entry of hosts.toml, repository, digest, and
  the same identity, which is also what pods had brought by then. Nothing secret is sent along it.
- It is forgotten when its time is over, and by whoever sees it fail; the table is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from modelvold.registry.authorizer import Identity
from modelvold.registry.credentials import BasicCredentials
from modelvold.registry.hosts_toml import Host

#: More than the blobs a node fetches at a time; with signatures in them, addresses are a kilobyte or two.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """What was asked of whom as whom. `path` is the blob's, below the repository's; `brought` what pods had brought for it."""

    host: Host
    identity: Identity
    path: str
    brought: tuple[BasicCredentials, ...] = field(default=(), repr=False)


class Shortcuts:
    """Thread-safe."""

    def __init__(self) -> None:
        self._targets: OrderedDict[Place, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()  # guards _targets

    def of(self, place: Place) -> str:
        """The URL to ask; empty where none is known that still holds."""
        with self._lock:
            url, until = self._targets.get(place, ("", 0.0))
            if url and time.monotonic() >= until:
                del self._targets[place]
                return ""
            return url

    def keep(self, place: Place, url: str, seconds: float) -> None:
        """What was kept longest ago goes first where there is no room."""
        with self._lock:
            self._targets[place] = url, time.monotonic() + seconds
            self._targets.move_to_end(place)
            while len(self._targets) > _MOST:
                self._targets.popitem(last=False)

    def forget(self, place: Place, url: str) -> None:
        """Nothing happens if another thread keeps a newer one by now."""
        with self._lock:
            if self._targets.get(place, ("", 0.0))[0] == url:
                del self._targets[place]
