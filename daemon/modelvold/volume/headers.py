"""What a tar holds, read from its registry: headers only, by ranged requests, where there is much between them.

A request asks for a window from the next header on, or from where the last one ended (`layer.window`), and is read as a stream
through one buffer; where the next header lies far ahead the request is given up for one that begins there. So memory is a buffer
and the longest header, whatever the layer's size. What was read on the way is spooled.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager
from typing import Protocol

from modelvold.errors import Exhausted, Unreachable
from modelvold.layer.extent import BlobOffset, ContentOffset, Extent
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import MOST_ENTRIES, Toc
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
#: Seconds for a layer's headers in all: a registry that is slow and never silent must not hold an opener for good.
LONGEST = 600.0


class Body(Protocol):
    def readinto(self, view: memoryview, /) -> int: ...


class Ranges(Protocol):
    """What is asked of the registry's client."""

    def open_range(
        self, repository: Repository, digest: Digest, start: BlobOffset, end: BlobOffset, *, timeout: float, size: int
    ) -> AbstractContextManager[Body]: ...


class Bound:
    """What the headers of all layers of a model may hold together, so that they are refused before they take memory. Thread-safe."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards _counts
        self._counts: dict[Digest, int] = {}

    def note(self, layer: Digest, entries: int) -> None:
        """So many are there in this layer by now. Raises Exhausted."""
        with self._lock:
            self._counts[layer] = entries
            total = sum(self._counts.values())
        if total > self._most:
            raise Exhausted(
                f"the model has more than {self._most} files and folders", "ask the producer to pack them in archives"
            )


def read_headers(
    registry: Ranges,
    repository: Repository,
    layer: Descriptor,
    spool: Spool,
    *,
    bound: Bound,
    stopping: threading.Event,
) -> Toc:
    """The toc of an uncompressed tar, whose blob is its content. Raises what the client and the walker raise, Exhausted beyond
    `bound`; Unreachable once `stopping` is set, or after LONGEST seconds."""
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
        bound.note(layer.digest, reading.walker.entries)
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
        self._until = time.monotonic() + LONGEST
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
            self._check()
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

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Unreachable(f"layer {self._layer.digest}: given up", "try again")
        if time.monotonic() > self._until:
            self._stopping.set()
            raise Unreachable(
                f"layer {self._layer.digest}: its headers were not all here after {LONGEST:g} s", "see why it is slow"
            )

    def _is_near(self, at: ContentOffset) -> bool:
        wanted = self.walker.wanted
        return wanted is not None and wanted.start - at <= _NEAR
