"""What becomes of a content whose digest was taken: shared, fetched once more from somebody else, or in quarantine."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from modelvold import points
from modelvold.errors import Exhausted, Failing, Failure, Mismatch
from modelvold.layer import toc
from modelvold.linux.files import sync_folder
from modelvold.oci.media_type import Reading
from modelvold.points import Point
from modelvold.store import segment_files, verification
from modelvold.store.catalog import Catalog
from modelvold.store.content import Content, folder_of
from modelvold.store.contents import Contents
from modelvold.store.running import Stamp
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


class Consequences(Protocol):
    """What the store does about it."""

    def on_verified(self, content: Content) -> None: ...

    def on_mismatch(self, content: Content, reason: str) -> bool:
        """Its bytes go; whether all of it is fetched once more, from somebody else."""
        ...

    def fail(self, segments: Sequence[Segment], failure: Failure) -> None: ...

    def withdraw_wrong(self, segments: Sequence[Segment]) -> None: ...


class Judging:
    """`settling` is held while segments are recorded, while they begin to leave, and while a content is called verified: what was
    evicted after its bytes had been read is not judged by them."""

    def __init__(
        self, catalog: Catalog, contents: Contents, settling: threading.Lock, consequences: Consequences
    ) -> None:
        self._catalog = catalog
        self._contents = contents
        self._settling = settling
        self._then = consequences

    def judge(self, content: Content, found: str, stamp: Stamp) -> None:
        """`found` is the digest of its bytes, in hexadecimal, and `stamp` says which those were. Where some have gone since, it is
        judged when they are here again."""
        if not self._contents.has(content.id):
            return
        is_right = found == content.digest.hex
        reason = self._misled(content) if is_right else f"its bytes have digest sha256:{found}"
        with self._settling:
            if not stamp.holds:
                log.info("drop judgement content=%s reason='segments went meanwhile'", content.digest)
                return
            if not reason:
                self._share(content)
        if not reason:
            log.info("verified content=%s bytes=%d", content.digest, content.length)
            self._then.on_verified(content)
        elif is_right or not self._then.on_mismatch(content, reason):
            self._quarantine(content, reason)

    def could_not(self, content: Content, error: Exception) -> None:
        """Its digest could not be taken or judged: whoever pulls it is told, and need not wait for what does not come. While some of it is
        missing nobody waits for its digest, which is tried again when all is here."""
        if not self._contents.has(content.id):
            log.info("drop verification content=%s reason=removed", content.digest)
            return
        if not content.is_durable:
            log.warning("hash content=%s waits for all of it reason=%r", content.digest, str(error))
            return
        log.error("verify content=%s failed", content.digest, exc_info=error)
        failure = error if isinstance(error, Failure) else Failing(f"layer {content.digest}: {error}", "see the log")
        content.last_error = failure
        self._then.fail(content.segments, failure)

    def _quarantine(self, content: Content, reason: str) -> None:
        log.error("quarantine content=%s source=%s reason=%r", content.digest, content.source, reason)
        content.state, content.reason = "quarantined", reason
        self._catalog.set_state(content.id, "quarantined", reason)
        failure = Mismatch(
            f"layer {content.digest} from {content.source}: {reason}",
            "remove the model with `modelvold rm`, and ask its producer",
        )
        self._then.fail(content.segments, failure)
        self._then.withdraw_wrong([segment for segment in content.segments if segment.taken])

    def _misled(self, content: Content) -> str:
        """Whether a tar that is the right one was shown by other headers than its own: then by which fault."""
        if content.reading is not Reading.TAR:
            return ""
        kept = self._catalog.toc(content.id)
        try:
            is_same = kept is not None and toc.decode(kept) == verification.toc_of(content)
        except Failure as failure:
            return f"it is no tar: {failure.message}"
        return "" if is_same else "the registry sent other headers when it was opened than the tar has"

    def _share(self, content: Content) -> None:
        """Into the shared place, unless the same content lies there already. Three steps, each safe to be the last one done."""
        self._catalog.set_state(content.id, "verified")
        points.at(Point.STORE_JUDGED)
        content.state = "verified"  # before it is moved: at no time is it shared and not verified
        try:
            is_moved = not content.source or self._move(content)  # it has moved where the record of that was cut short
            if is_moved:
                points.at(Point.STORE_MOVED)
                self._catalog.share(content.id)
        except BaseException as error:
            content.state = "unverified"  # it is judged again
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise Exhausted(f"layer {content.digest}: {error.strerror}", "make room in the store") from error
            raise
        content.reason = ""

    def _move(self, content: Content) -> bool:
        own, shared = content.folder(), folder_of(content.root, content.digest, content.reading, "")
        with self._contents.placing:
            shared.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            is_moved = self._contents.share(content)
            if is_moved:
                sync_folder(shared.parent)
                segment_files.prune(own, content.root / "content")
        return is_moved
