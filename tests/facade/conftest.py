from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from modelvold.facade import Facade

from tests.facade.upstream import HOST, MemoryGiven, MemoryUpstream, Reply, ask


@dataclass
class Bench:
    """A façade over real sockets, with what is behind it."""

    upstream: MemoryUpstream
    given: MemoryGiven
    facade: Facade

    def manifest(self, target: object, method: str = "GET", *, repository: str = "team/model", **fields: Any) -> Reply:
        return ask(self.facade.address, f"/v2/{repository}/manifests/{target}?ns={HOST}", method, **fields)

    def blob(self, digest: object, method: str = "GET", *, repository: str = "team/model", **fields: Any) -> Reply:
        return ask(self.facade.address, f"/v2/{repository}/blobs/{digest}?ns={HOST}", method, **fields)

    def restarted(self) -> Facade:
        """A façade that shares nothing with this one but the record."""
        return Facade(("127.0.0.1", 0), self.upstream, self.given, "amd64", patience=5)


@pytest.fixture
def bench() -> Iterator[Bench]:
    upstream, given = MemoryUpstream(), MemoryGiven()
    before = set(threading.enumerate())
    with Facade(("127.0.0.1", 0), upstream, given, "amd64", patience=5) as facade:
        yield Bench(upstream, given, facade)
        upstream.gate.set()
    assert not [t for t in threading.enumerate() if t not in before and t.name.startswith("facade")]
