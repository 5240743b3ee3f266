"""How segments become missing, in the order that lets nobody read what is not there (rules 2 and 4):

    digests kept ──▶ leaving ──▶ unrecorded, synced ──▶ asked about ──▶ a second ──▶ truncated ──▶ whoever waits is fetched for

Nothing is allowed of a segment that is leaving, and nothing recorded of it: reads queue at the gate, appends and records that
were under way find it leaving or truncated. A crash between any two steps loses a record, and with it the bytes, and no more.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Sequence

import xxhash

from modelvold import points
from modelvold.errors import Failing
from modelvold.points import Point
from modelvold.store.catalog import Catalog
from modelvold.store.content import content_of
from modelvold.store.ports import Watchers
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

#: Seconds. An answer is not a receipt: a read that was allowed may reach the file this much later (rule 4).
GRACE = 1.0
_PIECE = 1 << 20


class Withdrawal:
    """`settling` is held while segments are recorded; `withhold(segment)` says, of a missing one, whether its bytes must match
    before they are shown; `wait(seconds)` ends early when the store does."""

    def __init__(
        self,
        catalog: Catalog,
        settling: threading.Lock,
        watchers: Watchers,
        withhold: Callable[[Segment], bool],
        wait: Callable[[float], object],
    ) -> None:
        self._catalog = catalog
        self._settling = settling
        self._watchers = watchers
        self._withhold = withhold
        self._wait = wait

    def evict(self, segments: Sequence[Segment]) -> None:
        """Makes good segments missing. A verified content stays so: what comes again must have the digest of what went."""
        self._keep_digests([s for s in segments if s.durable and not s.moved and content_of(s).is_verified])
        self.run(segments)

    def run(
        self, segments: Sequence[Segment], before_missing: Callable[[Sequence[Segment]], None] = lambda _: None
    ) -> None:
        """Makes segments missing. Where one has no known digest its content is verified no more, for other bytes will come.
        `before_missing` is told of them when they are truncated, and nothing has come in their place.

        Raises Failure where the catalog cannot say so: then they stay.
        """
        moved = {content_of(segment) for segment in segments if segment.moved}  # whole files go as a whole
        asked = [s for s in segments if s.taken and not s.moved] + [s for content in moved for s in content.segments]
        with self._settling:
            leaving = [segment for segment in asked if segment.leave()]
            try:
                self._catalog.unrecord((content_of(segment).id, segment.number) for segment in leaving)
            except BaseException:
                for segment in leaving:
                    segment.stay()
                raise
            for segment in leaving:
                segment.durable = False
        points.at(Point.STORE_UNRECORDED)
        for content in {content_of(segment) for segment in leaving}:
            content.state = "unverified" if content.is_verified and not content.is_checked else content.state
        self._tell_leaving(leaving)
        self._wait(GRACE)
        for segment in leaving:
            self._truncate(segment)
        for content in moved:
            shutil.rmtree(content.whole(0).parent, ignore_errors=True)
        before_missing(leaving)
        self._watchers.on_missing(leaving)

    def _tell_leaving(self, leaving: Sequence[Segment]) -> None:
        """What the kernel does not ask about must not be truncated: its readers would get EIO for as long as it is mounted."""
        try:
            self._watchers.on_leaving(leaving)
        except OSError as error:
            for segment in leaving:
                segment.stay()
            raise Failing(f"{len(leaving)} segments cannot be withdrawn: {error.strerror}", "see the log") from error

    def _truncate(self, segment: Segment) -> None:
        """One that cannot be truncated goes on leaving: nobody reads it, nobody appends to it."""
        try:
            segment.truncate()
        except OSError as error:
            log.error("truncate segment=%s error=%s", segment.path, error)  # noqa: TRY400
        segment.withheld = self._withhold(segment)
        points.at(Point.STORE_TRUNCATED)

    def _keep_digests(self, segments: Sequence[Segment]) -> None:
        """Of those that still are what was recorded: what has rotted since is not what was verified."""
        kept: list[tuple[Segment, bytes]] = []
        for segment in segments:
            if segment.digest is None:
                fingerprint, digest = sums_of(segment)
                if fingerprint == self._catalog.fingerprint(content_of(segment).id, segment.number):
                    kept.append((segment, digest))
                else:
                    log.error("rot segment=%s seen='when it was evicted'", segment.path)
        self._catalog.keep_digests((content_of(segment).id, segment.number, digest) for segment, digest in kept)
        points.at(Point.STORE_DIGEST_KEPT)
        for segment, digest in kept:
            segment.digest = digest


def sums_of(segment: Segment, pause: Callable[[int], object] = lambda _: None) -> tuple[bytes, bytes]:
    """xxh3-64 and sha256 of a durable segment's bytes as they lie on disk, padding left out; a short file gives others.
    `pause(count)` is called after each so many bytes. Raises OSError."""
    fingerprint, digest = xxhash.xxh3_64(), hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE))
    left = segment.length
    with segment.path.open("rb", buffering=0) as file:
        while left and (got := file.readinto(buffer[: min(left, _PIECE)])):
            fingerprint.update(buffer[:got])
            digest.update(buffer[:got])
            left -= got
            pause(got)
    return fingerprint.digest(), digest.digest()
