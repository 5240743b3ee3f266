"""Words the tests of store, fetch and mount share: contents of known bytes, filled by hand; a watcher that takes notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from modelvold.errors import Failure
from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import NewContent
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store

from tests.lab.program import wait_until

SOURCE = "127.0.0.1:1/models/tiny"


def extents(length: int, size: int = CHUNK) -> tuple[Extent, ...]:
    bounds = [*range(0, length, size), length]
    return tuple(Extent(ContentOffset(start), ContentOffset(end)) for start, end in pairwise(bounds))


def add(store: Store, data: bytes, size: int = CHUNK, *, source: str = SOURCE, digest: Digest | None = None) -> Content:
    cut = extents(len(data), size)
    return store.add([NewContent(digest or Digest.of(data), Reading.RAW, source, len(data), cut)])[0]


def fill(store: Store, segment: Segment, data: bytes, count: int | None = None) -> None:
    """Appends the segment's own bytes of the whole content `data`, up to `count` of them all told."""
    end = segment.extent.start + (segment.length if count is None else count)
    with segment.writer() as writer:
        piece = memoryview(data[segment.extent.start + segment.filled : end])
        writer.append(piece)
        store.on_appended(writer, piece)


def fill_all(store: Store, content: Content, data: bytes) -> None:
    for segment in content.segments:
        fill(store, segment, data)


def wait_for_state(content: Content, state: str) -> None:
    assert wait_until(lambda: content.state == state, 10), content


class Notes:
    """A store's watcher: what it was told, in order, with what was recorded and how long the file was just then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.told: list[tuple[str, int]] = []
        self.at_withdrawal: list[tuple[bytes | None, int]] = []
        self.failures: list[Failure] = []

    def _note(self, what: str, segments: Iterable[Segment]) -> None:
        self.told += [(what, segment.number) for segment in segments]

    def on_grown(self, segment: Segment) -> None:
        self._note("grown", [segment])

    def on_durable(self, segments: Sequence[Segment]) -> None:
        self._note("durable", segments)

    def on_missing(self, segments: Sequence[Segment]) -> None:
        self._note("missing", segments)

    def on_leaving(self, segments: Sequence[Segment]) -> None:
        self._note("leaving", segments)
        rows = {
            row.number: row for content in self._store.contents() for row in self._store.catalog.segments(content.id)
        }
        self.at_withdrawal += [(rows[s.number].fingerprint, s.path.stat().st_size) for s in segments]

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        self._note("failed", segments)
        self.failures.append(failure)
