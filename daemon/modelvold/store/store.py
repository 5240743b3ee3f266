"""The store: contents on disk, in step with the catalog.

What becomes of a segment its watchers are told (`store.ports`); how it goes is `store.withdrawal`, how room is made `store.room`,
what is thought of a complete content `store.judging`.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from modelvold import points
from modelvold.errors import Exhausted, Failing, Failure, Mismatch, NotYet
from modelvold.layer.extent import Extent
from modelvold.linux.filesystem import boot_id, filesystem_of
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.points import Point
from modelvold.store import segment_files, whole
from modelvold.store.catalog import Catalog, ContentRow, NewContent
from modelvold.store.content import Content, content_of, folder_of
from modelvold.store.contents import Contents
from modelvold.store.database import Database
from modelvold.store.durability import Durability, Synced
from modelvold.store.given import Given
from modelvold.store.judging import Judging
from modelvold.store.lock import held
from modelvold.store.ports import Above, NothingAbove, Watcher, Watchers
from modelvold.store.recovery import recover
from modelvold.store.room import Bounds, Lease, Room
from modelvold.store.scrub import Looked, Pace, Scrub, look
from modelvold.store.segment import Segment, Writer
from modelvold.store.showing import Verify, withholds
from modelvold.store.verification import Hashed, Verification
from modelvold.store.withdrawal import Withdrawal

log = logging.getLogger(__name__)

#: Seconds for which hosts are not asked that have sent wrong bytes: each segment that is fetched again is checked by itself, a layer only
#: when all of it has come.
_DOUBT_OF_SEGMENT, _DOUBT_OF_LAYER = 60.0, 3600.0


class Store:
    """Opens with a `with`. Raises Refused at the door when another process holds the store.

    `scrub_every`: seconds in which every durable byte is read again once, 0 for never. `is_continued`: the kernel went on asking
    since the last daemon's end, and what is there has been seen by nobody else.
    """

    def __init__(
        self,
        root: Path,
        bounds: Bounds = Bounds(),  # noqa: B008 — a frozen value
        verify: Verify = Verify.SERVE,
        *,
        scrub_every: float = 0.0,
        is_continued: bool = False,
    ) -> None:
        self.root = root
        self.verify = verify
        self.failing: Failing | None = None
        self.wrong_segments = 0
        self._bounds = bounds
        self._scrub_every = scrub_every
        self._is_continued = is_continued
        self._above: Above = NothingAbove()
        self._watchers = Watchers()
        self._settling = threading.Lock()  # a segment is recorded, or leaves, or neither once the store is failing
        self._life = ExitStack()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as life:
            for folder in ("content", "volumes", "snapshots"):
                (self.root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o711)  # containers' root folders lie below
            (self.root / "snapshots").chmod(0o711)
            life.enter_context(held(self.root / "lock"))
            database = Database(self.root / "catalog.db")
            life.callback(database.close)
            self.database = database
            self.catalog = Catalog(database)
            self.given = Given(database)
            disk = filesystem_of(self.root)
            self.lacks_journal = disk is not None and disk.lacks_journal
            is_same_boot = self.catalog.begin_life(boot := boot_id()) == boot
            recovered = recover(
                self.root,
                self.catalog,
                is_continued=self._is_continued,
                is_trusted=is_same_boot or not self.lacks_journal,
            )
            self._contents = Contents(recovered.contents)
            for segment in self._segments():
                segment.withheld = withholds(self.verify, segment)
            self._withdrawal = Withdrawal(
                self.catalog,
                self._settling,
                self._watchers,
                lambda segment: withholds(self.verify, segment),
                on_rot=self.withdraw_wrong,
                closing=self._closing,
            )
            self.room = Room(
                self.root,
                self._bounds,
                self.contents,
                self._withdrawal.evict,
                self._leases,
                is_freed_late=disk is not None and disk.is_freed_late,
                owed=lambda: database.owed,
            )
            judging = Judging(self.catalog, self._contents, self._settling, self)
            self._verification = life.enter_context(Verification(judging.judge, judging.could_not, self._contents.has))
            self._durability = life.enter_context(Durability(self._on_synced, self.on_sync_failed))
            if self._scrub_every:
                life.enter_context(Scrub(self, self._scrub_every))
            life.callback(self._closing.set)
            self._life = life.pop_all()
        for synced in recovered.unrecorded:
            self._durability.submit(synced)
        for content in self.contents():
            self._verify_if_complete(content)
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def watch(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)

    def serve(self, above: Above) -> None:
        """From now on these rooms are asked."""
        self._above = above

    # -- what there is

    def contents(self) -> list[Content]:
        return self._contents.all()

    def content(self, number: int) -> Content:
        return self._contents.get(number)

    def has(self, number: int) -> bool:
        return self._contents.has(number)

    def find(self, digest: Digest, reading: Reading, source: str) -> Content | None:
        """The content of `source`, or the shared one where `source` is empty."""
        return self._contents.find(digest, reading, source)

    def is_verifying(self, content: Content) -> bool:
        """Whether its digest goes on over what is here, or is judged: a second for each GiB that did not come in order."""
        return self._verification.is_pending(content)

    @property
    def hashed(self) -> Hashed:
        """What running digests went over in this daemon's life, and how."""
        return self._verification.hashed

    def used(self) -> int:
        """Bytes of the disk that segments take."""
        return sum(segment.taken for segment in self._segments())

    def _segments(self) -> Iterator[Segment]:
        return (segment for content in self.contents() for segment in content.segments)

    def _leases(self) -> Mapping[int, Lease]:
        return self._above.leases()

    # -- growing

    def add(
        self,
        new: Sequence[NewContent],
        known: Callable[[Digest, Extent], Iterable[memoryview]] = lambda _, __: (),
    ) -> list[Content]:
        """New contents, all of them or none. Their files exist when this returns: EROFS opens them all. They are empty, but in
        tars for what is `known` of a blob: of each segment the bytes from its start on, as far as they are at hand.

        Raises Exhausted on a full disk, with nothing left of them.
        """
        self.check()
        assert not any(self.find(one.digest, one.reading, one.source) for one in new)  # noqa: S101 — its files would go
        counts = {folder_of(self.root, one.digest, one.reading, one.source): len(one.cut) for one in new}
        try:
            with self._contents.placing:
                inodes = segment_files.make(counts, self.root / "content")
            points.at(Point.STORE_FILES_MADE)
            rows = self.catalog.add_contents(new)
        except (OSError, Failure) as error:
            for folder in counts:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Failing):
                raise
            why = error.strerror if isinstance(error, OSError) else error.message
            raise Exhausted(
                f"store {self.root}: {why} while making {sum(counts.values())} segments", "make room"
            ) from error
        except BaseException:
            for folder in counts:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        points.at(Point.STORE_CONTENT_ADDED)
        return [self._hold(*made, known) for made in zip(rows, new, inodes, strict=True)]

    def _hold(
        self,
        row: ContentRow,
        new: NewContent,
        inodes: Sequence[int],
        known: Callable[[Digest, Extent], Iterable[memoryview]],
    ) -> Content:
        """From now on it is found."""
        content = Content(self.root, row, new.cut)
        self._contents.add(content)
        is_withheld = any(withholds(self.verify, segment) for segment in content.segments[:1])  # empty ones are alike
        for segment, inode in zip(content.segments, inodes, strict=True):
            segment.inode = inode
            segment.withheld = is_withheld
        if new.toc is not None:
            for segment in content.segments:
                self._seed(segment, known(new.digest, segment.extent))
        self._contents.publish(content, new.source)
        if not new.cut:
            self._verification.submit(content)
        return content

    def _seed(self, segment: Segment, known: Iterable[memoryview]) -> None:
        """Nobody else has the segment yet. What cannot be kept is fetched, and whoever does that says why it fails."""
        try:
            with self.writing(segment) as writer:
                for piece in known:
                    writer.append(piece)
                    self.on_appended(writer)
        except (OSError, Failure) as error:
            log.info("seed segment=%s ended reason=%r", segment.path, str(error))

    @contextmanager
    def writing(self, segment: Segment) -> Iterator[Writer]:
        """The right to append to it. What is left incomplete is synced all the same: a disk that fails shows then, and not when
        somebody reads what it has lost. Raises Refused while another has it."""
        with segment.writer() as writer:
            before = segment.present
            try:
                yield writer
            finally:
                if before < segment.present < segment.padded:
                    self._durability.sync(writer)

    def on_appended(self, writer: Writer, piece: memoryview | None = None) -> None:
        """A transfer appended `piece` through `writer`: tell those who wait, hash it where its turn has come, and see to durability when
        it was the last. What is appended and not given here is read back for its digest.

        Raises Failing where the store fails meanwhile, and Mismatch where the complete segment is not the one it should be: what
        was appended is taken back.
        """
        segment = writer.segment
        points.at(Point.STORE_APPENDED)
        if self.failing:
            self._take_back([segment])
            raise self.failing
        segment.failure = None
        is_filled = segment.is_complete and not segment.durable
        if is_filled:
            self._check_filled(segment)
        self._watchers.on_grown(segment)
        if piece is not None and content_of(segment).state == "unverified":
            self._verification.follow(writer, piece)
        if is_filled:  # hashed first: when all is durable, no transfer is at the digest any more
            self._durability.sync(writer)

    def _check_filled(self, segment: Segment) -> None:
        segment.touched = time.monotonic()
        if not segment.is_right:
            self._take_back_wrong(segment)
        if segment.is_other:
            log.warning("drop pages segment=%s reason='other bytes came than were there'", segment.path)
            self._above.on_wrong([segment])
        segment.was = None
        segment.withheld = withholds(self.verify, segment)

    def fail(self, segments: Sequence[Segment], failure: Failure) -> None:
        """These cannot be fetched for now; whoever waits for them is told."""
        for segment in segments:
            segment.failure = failure
            content_of(segment).last_error = failure
        self._watchers.on_failed(segments, failure)

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
        """Makes segments missing whose bytes are lost (`store.withdrawal`)."""
        self._withdrawal.run(segments)

    def withdraw_wrong(self, segments: Sequence[Segment]) -> None:
        """Makes segments missing whose bytes are wrong, and has those who read them dealt with."""
        self.wrong_segments += sum(segment.taken > 0 for segment in segments)
        self._withdrawal.run(segments, self._above.on_wrong)

    def scrub(self, content: Content, pace: Pace) -> Iterator[Looked]:
        """Reads what is durable of it again; what is not what was recorded goes at once. Raises Failure."""
        began = int(time.time())
        for segment in content.segments:
            if segment.durable and not segment.moved and self.has(content.id):
                looked = look(self.catalog, segment, pace)
                if looked.is_right is False:
                    log.error("rot segment=%s reason='not the bytes that were recorded'", segment.path)
                    self.withdraw_wrong([segment])
                yield looked
        content.scrubbed = began
        self.catalog.scrubbed(content.id, began)

    def withdraw_moved(self) -> None:
        """What lies in whole files is missing to every backend but `directory`."""
        moved = [segment for segment in self._segments() if segment.moved]
        if moved:
            log.warning("withdraw segments=%d reason='they lie in whole files, of the backend directory'", len(moved))
            self.withdraw(moved)

    def remove(self, content: Content) -> int:
        """Forgets a content that no volume names and frees its bytes. Returns how many."""
        freed = sum(segment.present for segment in content.segments)
        self.catalog.remove_content(content.id)
        points.at(Point.STORE_REMOVED)
        self._contents.drop(content)
        self._verification.forget(content)
        for segment in content.segments:
            segment.go()
        with self._contents.placing:
            shutil.rmtree(content.folder(), ignore_errors=True)
            segment_files.prune(content.folder(), self.root / "content")
        return freed

    # -- called by our own threads

    def _on_synced(self, batch: Sequence[Synced]) -> None:
        with self._settling:
            if self.failing:
                return
            held = [synced for synced in batch if synced.holds]
            self.catalog.record_durable(
                (content_of(synced.segment).id, synced.segment.number, synced.fingerprint or b"") for synced in held
            )
            points.at(Point.STORE_RECORDED)
            segments = [synced.segment for synced in held]
            for segment in segments:  # before it is told: who begins to watch meanwhile sees one or the other
                segment.durable = True
            self._watchers.on_durable([segment for segment in segments if segment.is_open])
        for content in {content_of(segment).id: content_of(segment) for segment in segments}.values():
            self._verify_if_complete(content)

    def _verify_if_complete(self, content: Content) -> None:
        if content.is_durable and content.state == "unverified":
            self._verification.submit(content)

    def on_sync_failed(self, why: str) -> None:
        """What was written may not be on disk: from now on the store is failing, and what is not recorded is shown to nobody."""
        with self._settling:
            if self.failing:
                return
            self.failing = Failing(
                f"store {self.root} is failing: {why}",
                "what was not recorded is not served; mend the disk, then restart modelvold",
            )
            unrecorded = [segment for segment in self._segments() if segment.present and not segment.durable]
            for segment in unrecorded:
                segment.withheld = True
        log.error("store failing reason=%r", why)
        self.fail(unrecorded, self.failing)
        self._take_back(unrecorded)

    def _take_back(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            try:
                segment.truncate()
            except OSError as error:
                log.error("truncate segment=%s error=%s", segment.path, error)  # noqa: TRY400 — the store is known to fail

    def _take_back_wrong(self, segment: Segment) -> None:
        """It was withheld, so nobody has read it."""
        content = content_of(segment)
        content.suspect(segment.hosts, _DOUBT_OF_SEGMENT)
        self.wrong_segments += 1
        log.error("drop segment=%s reason='not the bytes that were verified before'", segment.path)
        segment.truncate()
        segment.withheld = withholds(self.verify, segment)
        raise Mismatch(
            f"layer {content.digest}: what {', '.join(sorted(content.suspects)) or 'the registry'} sent again of segment"
            f" {segment.number} is not what was verified before",
            "ask whoever runs the registry",
        )

    # -- judged (judging.Consequences)

    def on_verified(self, content: Content) -> None:
        for segment in content.segments:  # what they sent is right
            segment.hosts = ()
        held = [segment for segment in content.segments if segment.withheld]
        for segment in held:
            segment.withheld = withholds(self.verify, segment)
            self._watchers.on_grown(segment)
        self._watchers.on_durable([segment for segment in held if segment.is_open])
        content.scrubbed = int(
            time.time()
        )  # all of it was just read; written down last, since a full disk may hinder it
        self.catalog.scrubbed(content.id, content.scrubbed)

    def on_mismatch(self, content: Content, reason: str) -> bool:
        """Its bytes go; whether all of it is fetched once more, from somebody else."""
        content.suspect(content.served_by, _DOUBT_OF_LAYER)
        # Written down first, so that what was read of it is known to be wrong after a crash, too.
        content.reason = reason
        self.catalog.set_state(content.id, content.state, reason)
        log.error("mismatch content=%s sent_by=%s reason=%r", content.digest, sorted(content.suspects), reason)
        self.withdraw_wrong(content.segments)
        return self._above.start_over(content)
