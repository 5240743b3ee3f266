"""The store: contents on disk, in step with the catalog.

Whoever must know of a segment's life is a `Watcher`; its methods are called by the thread that did the thing, no lock held, and
in this order for one segment: grown…, durable, and perhaps withdrawn.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

from modelvold.errors import Exhausted, Failing, Failure, Mismatch, NotYet, Refused
from modelvold.layer import toc
from modelvold.layer.extent import Extent
from modelvold.linux.files import sync_folder
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store import verification, whole
from modelvold.store.catalog import Catalog, ContentRow, SegmentRow
from modelvold.store.content import Content, content_of, folder_of
from modelvold.store.database import Database
from modelvold.store.durability import Durability
from modelvold.store.recovery import recover
from modelvold.store.segment import Segment, Writer
from modelvold.store.verification import Verification

log = logging.getLogger(__name__)

#: An answer is not a receipt: a read that was allowed may reach the file this much later (rule 4).
GRACE = 1.0


class Watcher(Protocol):
    def on_grown(self, segment: Segment) -> None:
        """Bytes were appended."""

    def on_durable(self, segments: Sequence[Segment]) -> None:
        """These are on disk and recorded: nobody needs to be asked about them any more."""

    def on_withdrawn(self, segments: Sequence[Segment]) -> None:
        """These are about to be truncated: from now on every read of them must be asked about."""

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        """These cannot be had, for now."""


class Store:
    """Opens with a `with`. Raises Refused at the door when another process holds the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.failing: Failing | None = None
        self._contents: dict[int, Content] = {}
        self._by_key: dict[tuple[Digest, Reading, str], Content] = {}
        self._lock = threading.Lock()  # guards the two tables above and _watchers
        self._settling = threading.Lock()  # a batch is recorded and told as a whole, or not once the store is failing
        self._watchers: tuple[Watcher, ...] = ()
        self._life = ExitStack()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as life:
            for folder in ("content", "volumes", "snapshots"):
                (self.root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o711)  # containers' root folders lie below
            (self.root / "snapshots").chmod(0o711)
            life.enter_context(_flocked(self.root / "lock"))
            database = Database(self.root / "catalog.db")
            life.callback(database.close)
            self.database = database
            self.catalog = Catalog(database)
            for content in recover(self.root, self.catalog):
                self._contents[content.id] = content
                self._by_key[content.digest, content.reading, content.source] = content
            self._verification = life.enter_context(Verification(self._on_judged, self._on_not_judged))
            self._durability = life.enter_context(Durability(self._on_synced, self.on_sync_failed))
            life.callback(self._closing.set)
            self._life = life.pop_all()
        for content in self.contents():
            if content.state == "unverified" and content.is_durable:
                self._verification.submit(content)
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def watch(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    # -- what there is

    def contents(self) -> list[Content]:
        with self._lock:
            return list(self._contents.values())

    def content(self, number: int) -> Content:
        with self._lock:
            return self._contents[number]

    def has(self, number: int) -> bool:
        with self._lock:
            return number in self._contents

    def find(self, digest: Digest, reading: Reading, source: str) -> Content | None:
        """The content of `source`, or the shared one where `source` is empty."""
        with self._lock:
            return self._by_key.get((digest, reading, source))

    def used(self) -> int:
        """Bytes in segment files."""
        return sum(segment.present for content in self.contents() for segment in content.segments)

    # -- growing

    def add(
        self,
        digest: Digest,
        reading: Reading,
        source: str,
        length: int,
        cut: Sequence[Extent],
        *,
        headers: bytes | None = None,
        known: Callable[[Extent], Iterable[memoryview]] = lambda _: (),
    ) -> Content:
        """A new content. Its files exist when this returns: EROFS opens them all. They are empty, but for what is `known`: of
        each segment the bytes from its start on, as far as they are at hand. `headers` is the encoded toc of a tar."""
        self.check()
        folder = folder_of(self.root, digest, reading, source)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number in range(len(cut)):
                os.close(os.open(folder / f"{number:05d}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            sync_folder(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise Exhausted(
                f"store {self.root}: {error.strerror} while making {len(cut)} segments", "make room"
            ) from error
        number = self.catalog.add_content(digest, reading, source, length, cut, toc=headers)
        row = ContentRow(number, digest, reading, source, length, "unverified", "")
        content = Content(self.root, row, (SegmentRow(n, extent, None) for n, extent in enumerate(cut)))
        with self._lock:
            self._contents[number] = content
        for segment in content.segments:
            segment.inode = segment.path.stat().st_ino
            self._seed(segment, known(segment.extent))
        with self._lock:
            if content.source == source:  # and not verified and shared by now
                self._by_key[digest, reading, source] = content
        if not cut:
            self._verification.submit(content)
        return content

    def _seed(self, segment: Segment, known: Iterable[memoryview]) -> None:
        """Nobody else has the segment yet. What cannot be kept is fetched, and whoever does that says why it fails."""
        with segment.writer() as writer:
            try:
                for piece in known:
                    writer.append(piece)
                    self.on_appended(writer)
            except (OSError, Failure) as error:
                log.info("seed segment=%s ended reason=%r", segment.path, str(error))

    def on_appended(self, writer: Writer) -> None:
        """A transfer appended through `writer`: tell those who wait, and see to durability when it was the last.

        Raises Failing where the store fails meanwhile; what was appended is taken back.
        """
        segment = writer.segment
        if self.failing:
            self._take_back([segment])
            raise self.failing
        segment.failure = None
        if segment.is_complete:
            self._durability.submit(segment, writer.detach())
        for watcher in self._watchers:
            watcher.on_grown(segment)

    def fail(self, segments: Sequence[Segment], failure: Failure) -> None:
        """These cannot be fetched for now; whoever waits for them is told."""
        for segment in segments:
            segment.failure = failure
            content_of(segment).last_error = failure
        for watcher in self._watchers:
            watcher.on_failed(segments, failure)

    def check(self) -> None:
        """Raises Failing when nothing new may be promised."""
        if self.failing:
            raise self.failing

    def make_whole(
        self, content: Content, files: Sequence[Extent], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Moves a verified content's bytes into whole files (`store.whole`), one call at a time.

        Raises Exhausted on a full disk, Failing where the disk fails, or where whole files that were recorded are gone:
        then all of the content is missing again; NotYet where it is not all here, or once `cancelled()`.
        """
        self.check()
        if not (content.is_durable and content.is_verified):
            raise NotYet(f"layer {content.digest}: its bytes have gone again", "they are fetched again")
        try:
            whole.move(content, files, lambda segment: self.catalog.record_moved(content.id, segment.number), cancelled)
        except whole.SyncFailed as error:
            self.on_sync_failed(f"syncfs of {content.folder()}: {error.strerror}")
            self.check()
        except OSError as error:
            raise Exhausted(f"store {content.folder()}: {error.strerror}", "make room in the store") from error
        if not whole.is_there(content, files):
            self.withdraw(content.segments)
            raise Failing(f"layer {content.digest}: whole files that were recorded are gone", "it is fetched again")

    # -- shrinking

    def withdraw(self, segments: Sequence[Segment]) -> None:
        """Makes segments missing: unrecord, sync, have reads asked about, wait, truncate (rules 2 and 4). What was verified is so
        no longer: other bytes will come."""
        moved = {content_of(segment) for segment in segments if segment.moved}  # whole files go as a whole
        held = [s for s in segments if s.present and not s.moved] + [s for content in moved for s in content.segments]
        self.catalog.unrecord((content_of(segment).id, segment.number) for segment in held)
        for segment in held:
            segment.durable = False
        for content in {content_of(segment) for segment in held}:
            content.state = "unverified" if content.is_verified else content.state
        for watcher in self._watchers:
            watcher.on_withdrawn(held)
        self._closing.wait(GRACE)
        for segment in held:
            segment.truncate()
        for content in moved:
            shutil.rmtree(content.whole(0).parent, ignore_errors=True)

    def withdraw_moved(self) -> None:
        """What lies in whole files is missing to every backend but `directory`."""
        moved = [segment for content in self.contents() for segment in content.segments if segment.moved]
        if moved:
            log.warning("withdraw segments=%d reason='they lie in whole files, of the backend directory'", len(moved))
            self.withdraw(moved)

    def remove(self, content: Content) -> int:
        """Forgets a content that no volume names and frees its bytes. Returns how many."""
        freed = sum(segment.present for segment in content.segments)
        self.catalog.remove_content(content.id)
        with self._lock:
            self._contents.pop(content.id, None)
            if self._by_key.get((content.digest, content.reading, content.source)) is content:
                del self._by_key[content.digest, content.reading, content.source]
        shutil.rmtree(content.folder(), ignore_errors=True)
        return freed

    # -- called by our own threads

    def _on_synced(self, batch: Sequence[tuple[Segment, bytes]]) -> None:
        segments = [segment for segment, _ in batch]
        with self._settling:
            if self.failing:
                return
            self.catalog.record_durable(
                (content_of(segment).id, segment.number, fingerprint) for segment, fingerprint in batch
            )
            for segment in segments:  # before it is told: who begins to watch meanwhile sees one or the other
                segment.durable = True
            for watcher in self._watchers:
                watcher.on_durable(segments)
        for content in {content_of(segment).id: content_of(segment) for segment in segments}.values():
            if content.is_durable and content.state == "unverified":
                self._verification.submit(content)

    def on_sync_failed(self, why: str) -> None:
        """What was written may not be on disk: from now on the store is failing."""
        with self._settling:
            if self.failing:
                return
            self.failing = Failing(
                f"store {self.root} is failing: {why}",
                "what was not recorded is not served; mend the disk, then restart modelvold",
            )
        log.error("store failing reason=%r", why)
        unrecorded = [s for content in self.contents() for s in content.segments if s.present and not s.durable]
        self.fail(unrecorded, self.failing)
        self._take_back(unrecorded)

    def _take_back(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            try:
                segment.truncate()
            except OSError as error:
                log.error("truncate segment=%s error=%s", segment.path, error)  # noqa: TRY400 — the store is known to fail

    def _on_judged(self, content: Content, found: str) -> None:
        if not self.has(content.id):
            return
        reason = "" if found == content.digest.hex else f"its bytes have digest sha256:{found}"
        reason = reason or self._misled(content)
        if not reason:
            self._share(content)
            log.info("verified content=%s bytes=%d", content.digest, content.length)
            return
        log.error("quarantine content=%s source=%s reason=%r", content.digest, content.source, reason)
        content.state, content.reason = "quarantined", reason
        self.catalog.set_state(content.id, "quarantined", reason)
        failure = Mismatch(
            f"layer {content.digest} from {content.source}: {reason}",
            "remove the model with `modelvold rm`, and ask its producer",
        )
        self.fail(content.segments, failure)
        self.withdraw(content.segments)

    def _misled(self, content: Content) -> str:
        """Whether a tar that is the right one was shown by other headers than its own: then by which fault."""
        if content.reading is not Reading.TAR:
            return ""
        kept = self.catalog.toc(content.id)
        try:
            is_same = kept is not None and toc.decode(kept) == verification.toc_of(content)
        except Failure as failure:
            return f"it is no tar: {failure.message}"
        return "" if is_same else "the registry sent other headers when it was opened than the tar has"

    def _on_not_judged(self, content: Content, error: Exception) -> None:
        """Whoever pulls it is told, and need not wait for what does not come."""
        if not self.has(content.id):
            log.info("drop verification content=%s reason=removed", content.digest)
            return
        log.error("verify content=%s failed", content.digest, exc_info=error)
        failure = error if isinstance(error, Failure) else Failing(f"layer {content.digest}: {error}", "see the log")
        content.last_error = failure
        self.fail(content.segments, failure)

    def _share(self, content: Content) -> None:
        """Into the shared place, unless the same content lies there already. Three steps, each safe to be the last one done."""
        self.catalog.set_state(content.id, "verified")
        source = content.source
        shared = folder_of(self.root, content.digest, content.reading, "")
        shared.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock:
            is_ours = self._contents.get(content.id) is content  # and not removed meanwhile
            is_moving = is_ours and (content.digest, content.reading, "") not in self._by_key
            if is_moving:
                content.folder().rename(shared)
                content.source = ""
                self._by_key.pop((content.digest, content.reading, source), None)
                self._by_key[content.digest, content.reading, ""] = content
        if is_moving:
            sync_folder(shared.parent)
            self.catalog.share(content.id, source)
        content.state = "verified"


@contextmanager
def _flocked(path: Path) -> Iterator[None]:
    """Rule 3: one writer. A second daemon on one store would make holes, and holes read as zeros."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"store {path.parent}: another modelvold holds it", "stop that one first, or give --root another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
