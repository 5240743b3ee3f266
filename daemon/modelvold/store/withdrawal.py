"""How segments become missing, in the order that lets nobody read what is not there (rules 2 and 4):

    sums taken ──▶ leaving ──▶ unrecorded, synced ──▶ asked about ──▶ a second ──▶ truncated ──▶ whoever waits is fetched for

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
from modelvold.errors import Failing, NotYet
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
    """`settling` is held while segments are recorded and judged; `withhold(segment)` says, of a missing one, whether its bytes must
    match before they are shown; `on_rot(segments)` is told of those that were found wrong when they should have been evicted;
    `closing` is set when the store ends, and then nothing leaves any more."""

    def __init__(
        self,
        catalog: Catalog,
        settling: threading.Lock,
        watchers: Watchers,
        withhold: Callable[[Segment], bool],
        *,
        on_rot: Callable[[Sequence[Segment]], None],
        closing: threading.Event,
    ) -> None:
        self._catalog = catalog
        self._settling = settling
        self._watchers = watchers
        self._withhold = withhold
        self._on_rot = on_rot
        self._closing = closing

    def evict(self, segments: Sequence[Segment]) -> None:
        """Makes good segments missing. A verified content stays so: what comes again must have the digest of what went. Of one that
        was never verified it is noted what went, so that who has read it is known to have other bytes, should others come."""
        rotten = self._take_sums([segment for segment in segments if segment.taken and not segment.moved])
        if rotten:
            self._on_rot(rotten)
        self.run([segment for segment in segments if segment not in rotten])

    def run(self, segments: Sequence[Segment], on_wrong: Callable[[Sequence[Segment]], None] | None = None) -> None:
        """Makes segments missing. Where one has no known digest its content is verified no more, for other bytes will come.
        Where they are wrong, `on_wrong` is told of all of them once they are truncated, and before anything comes in their place.

        Raises Failure where the catalog cannot say so, or the store ends: then they stay.
        """
        if self._closing.is_set():  # nobody could be asked about them any more
            raise NotYet("the store is being closed", "what is wrong is found again at the next start")
        moved = {content_of(segment) for segment in segments if segment.moved}  # whole files go as a whole
        asked = [s for s in segments if s.taken and not s.moved] + [s for content in moved for s in content.segments]
        leaving = self._leave(asked, are_wrong=on_wrong is not None)
        self._tell_leaving(leaving)
        self._closing.wait(GRACE)
        gone = [segment for segment in leaving if self._truncate(segment)]
        for content in moved:
            shutil.rmtree(content.whole(0).parent, ignore_errors=True)
        if on_wrong is not None:
            on_wrong(segments)
            self._catalog.clear_wrong((content_of(segment).id, segment.number) for segment in gone)
        for segment in gone:
            segment.stay()
        self._watchers.on_missing(gone)

    def _leave(self, asked: Sequence[Segment], *, are_wrong: bool) -> list[Segment]:
        with self._settling:
            leaving = [segment for segment in asked if segment.leave()]
            try:
                numbers = [(content_of(segment).id, segment.number) for segment in leaving]
                self._catalog.unrecord(numbers, are_wrong=are_wrong)
            except BaseException:
                for segment in leaving:
                    segment.stay()
                raise
            for segment in leaving:
                segment.durable = False
            for content in {content_of(segment) for segment in leaving}:
                if content.is_verified and not content.is_checked:
                    content.state = "unverified"
        points.at(Point.STORE_UNRECORDED)
        return leaving

    def _tell_leaving(self, leaving: Sequence[Segment]) -> None:
        """What the kernel does not ask about must not be truncated: its readers would get EIO for as long as it is mounted."""
        try:
            self._watchers.on_leaving(leaving)
        except OSError as error:
            for segment in leaving:
                segment.stay()
            raise Failing(f"{len(leaving)} segments cannot be withdrawn: {error.strerror}", "see the log") from error

    def _truncate(self, segment: Segment) -> bool:
        """One that cannot be truncated goes on leaving: nobody reads it, nobody appends to it."""
        try:
            segment.truncate()
        except OSError as error:
            log.error("truncate segment=%s error=%s", segment.path, error)  # noqa: TRY400
            return False
        segment.withheld = self._withhold(segment)
        points.at(Point.STORE_TRUNCATED)
        return True

    def _take_sums(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that are no longer what was recorded of them; the others' sums are kept. What the disk cannot read is let go without."""
        kept: list[tuple[Segment, bytes]] = []
        rotten: list[Segment] = []
        for segment in segments:
            content, sums = content_of(segment), _sums(segment) if segment.durable else None
            if sums is None:
                segment.was = b"" if segment.shown else None  # whatever comes may be something else
            elif (recorded := self._catalog.fingerprint(content.id, segment.number)) is None:
                segment.was = b"" if segment.shown else None  # removed meanwhile
            elif sums[0] != recorded:
                log.error("rot segment=%s seen='when it was to be evicted'", segment.path)
                rotten.append(segment)
            elif not content.is_verified:
                segment.was = sums[1]
            elif segment.digest is None:
                kept.append((segment, sums[1]))
        self._catalog.keep_digests((content_of(segment).id, segment.number, digest) for segment, digest in kept)
        points.at(Point.STORE_DIGEST_KEPT)
        for segment, digest in kept:
            segment.digest = digest
        return rotten


def _sums(segment: Segment) -> tuple[bytes, bytes] | None:
    try:
        return sums_of(segment)
    except OSError as error:
        log.error("read segment=%s error=%s", segment.path, error)  # noqa: TRY400
        return None


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
