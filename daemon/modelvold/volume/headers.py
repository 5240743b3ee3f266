"""What a tar holds, read from its registry: headers only, by ranged requests, where there is much between them.

A request asks for a window from the next header on, or from where the last one ended (`layer.window`), and is read as a stream
through one buffer; where the next header lies far ahead the request is given up for one that begins there. So memory is a buffer
and the longest header, whatever the layer's size. What was read on the way is spooled.
"""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from typing import Protocol

from modelvold.errors import Unreachable
from modelvold.layer.extent import BlobOffset, ContentOffset, Extent
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Toc
from modelvold.layer.window import next_window
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor
from modelvold.oci.reference import Repository
from modelvold.volume.spool import Spool

log = logging.getLogger(__name__)

#: What is read at a time.
_BUFFER = 256 << 10
#: Reading on as far as this costs less than giving a request up, which costs a connection and a round trip.
_NEAR = 2 * _BUFFER
#: A request that brought nothing is made again, this often at most, so long after the last.
_TRIES = 3
_PAUSE = 0.3
#: Seconds of silence after which a request has failed.
_STALL = 10.0


class Body(Protocol):
    def readinto(self, view: memoryview, /) -> int: ...


class Ranges(Protocol):
    """What is asked of the registry's client."""

    def open_range(
        self, repository: Repository, digest: Digest, start: BlobOffset, end: BlobOffset, *, timeout: float, size: int
    ) -> AbstractContextManager[Body]: ...


def read_headers(
    registry: Ranges, repository: Repository, layer: Descriptor, spool: Spool, stopping: threading.Event
) -> Toc:
    """The toc of an uncompressed tar, whose blob is its content. Raises what the client and the walker raise; Unreachable once
    `stopping` is set."""
    reading = _Reading(registry, repository, layer, spool, stopping)
    tries = 0
    while (before := reading.walker.wanted) is not None:
        try:
            reading.read_window()
        except Unreachable as failure:
            tries = 1 if reading.walker.wanted != before else tries + 1
            if tries == _TRIES or stopping.wait(_PAUSE):
                raise
            log.info("read headers layer=%s again=%d error=%r", layer.digest, tries, str(failure))
    log.info(
        "read headers layer=%s bytes=%d requests=%d read=%d", layer.digest, layer.size, reading.requests, reading.read
    )
    return reading.walker.toc()


class _Reading:
    """One layer's. `requests` and bytes `read` are what it cost."""

    def __init__(
        self, registry: Ranges, repository: Repository, layer: Descriptor, spool: Spool, stopping: threading.Event
    ) -> None:
        self.walker = TarWalker(layer.size)
        self.requests = 0
        self.read = 0
        self._registry = registry
        self._repository = repository
        self._layer = layer
        self._spool = spool
        self._stopping = stopping
        self._before: Extent | None = None
        self._buffer = memoryview(bytearray(_BUFFER))

    def read_window(self) -> None:
        """One request: as far as headers follow each other in it."""
        wanted = self.walker.wanted
        assert wanted is not None  # noqa: S101 — who calls has looked
        window = next_window(wanted, self._before, self._layer.size)
        start, end = BlobOffset(window.start), BlobOffset(window.end)
        self.requests += 1
        asked = self._registry.open_range(
            self._repository, self._layer.digest, start, end, timeout=_STALL, size=self._layer.size
        )
        with asked as body:
            self._before = Extent(window.start, self._pass_through(body, window))

    def _pass_through(self, body: Body, window: Extent) -> ContentOffset:
        """Feeds the walker; returns how far it came. A short rest is read too, so that the connection can be used again."""
        held, at = bytearray(), window.start
        while at < window.end and (self._is_near(at) or window.end - at <= _NEAR):
            if self._stopping.is_set():
                raise Unreachable(f"layer {self._layer.digest}: given up", "try again")
            got = body.readinto(self._buffer)
            if not got:
                break
            self.read += got
            self._spool.keep(self._layer.digest, at, self._buffer[:got])
            held_at = ContentOffset(at - len(held))
            held += self._buffer[:got]
            at = ContentOffset(at + got)
            self.walker.feed(held_at, held)
            wanted = self.walker.wanted
            del held[: wanted.start - held_at if wanted else None]
        return at

    def _is_near(self, at: ContentOffset) -> bool:
        wanted = self.walker.wanted
        return wanted is not None and wanted.start - at <= _NEAR
