"""What a start trusts: only recorded segments whose length agrees; everything else goes (rule 2).

Two exceptions. Where the kernel went on asking since the last daemon's end, nothing unrecorded was lost meanwhile, and reads that
were allowed may still be under way: what is there is synced and kept. Where the file system has no journal and the machine was
started anew nothing is trusted, for blocks of what was synced may be given to others.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelvold.errors import Failing
from modelvold.store import segment_files
from modelvold.store.catalog import Catalog, ContentRow, SegmentRow
from modelvold.store.content import Content, folder_of
from modelvold.store.durability import Synced
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """`unrecorded`: complete segments that are on disk and in no record yet."""

    contents: list[Content] = field(default_factory=list)
    unrecorded: list[Synced] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    """Of a content's segments: those without a record whose bytes may be kept, and those that must go."""

    kept: list[Segment] = field(default_factory=list)
    lost: list[Segment] = field(default_factory=list)


def recover(root: Path, catalog: Catalog, *, is_continued: bool = False, is_trusted: bool = True) -> Recovered:
    """The contents of the catalog as they lie on disk, both made to agree. Nobody else has the store. Raises Failing where what
    is to be kept cannot be synced."""
    rows = catalog.contents()
    shared = {(row.digest, row.reading) for row in rows if not row.source}
    recovered = Recovered()
    for row in rows:
        settled = row if (row.digest, row.reading) in shared else _settled(root, catalog, row)
        segments = catalog.segments(row.id)
        content = Content(root, settled, (segment.extent for segment in segments))
        found = _found(content, segments, is_trusted=is_trusted, is_continued=is_continued)
        _drop(catalog, content, found.lost)
        recovered.unrecorded += [synced for segment in found.kept if (synced := _kept(segment))]
        if content.is_verified and not content.is_checked:
            content.state = "unverified"
            catalog.set_state(content.id, "unverified")
        if not any(segment.moved for segment in content.segments):
            shutil.rmtree(content.whole(0).parent, ignore_errors=True)
        recovered.contents.append(content)
    _sweep(root, recovered.contents)
    return recovered


def _settled(root: Path, catalog: Catalog, row: ContentRow) -> ContentRow:
    """Finishes a move to the shared place that a crash cut short."""
    shared = folder_of(root, row.digest, row.reading, "")
    if (
        row.source
        and row.state == "verified"
        and not folder_of(root, row.digest, row.reading, row.source).exists()
        and shared.exists()
    ):
        catalog.share(row.id)
        return ContentRow(row.id, row.digest, row.reading, "", row.length, row.state, row.reason, row.scrubbed)
    return row


def _found(content: Content, rows: Sequence[SegmentRow], *, is_trusted: bool, is_continued: bool) -> _Found:
    """Sets what is trusted."""
    content.folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    has_whole = content.whole(0).parent.is_dir()
    is_trusted, is_continued = (given and content.state != "quarantined" for given in (is_trusted, is_continued))
    found = _Found()
    files = segment_files.find(content.folder(), len(rows))
    for segment, row, file in zip(content.segments, rows, files, strict=True):
        segment.digest, segment.inode, size = row.digest, file.inode, file.size
        is_recorded = row.fingerprint is not None
        is_whole = is_trusted and is_recorded and row.is_moved and has_whole
        if is_whole or (is_trusted and is_recorded and not row.is_moved and size == segment.padded):
            segment.present, segment.durable = segment.padded, True
        elif is_continued and not is_recorded and not row.is_wrong and 0 < size <= segment.padded:
            found.kept.append(segment)
        elif is_recorded or size:
            found.lost.append(segment)
        if is_whole:
            segment.empty()
    if found.lost and any(segment.moved for segment in content.segments):
        found.lost = list(content.segments)  # no digest can be taken of what lies here and there
    return found


def _kept(segment: Segment) -> Synced | None:
    """Syncs what there is of it, and reads it for its sums. The record to make, where it is complete."""
    try:
        segment.resume()
    except OSError as error:
        raise Failing(f"segment {segment.path}: {error.strerror} while it was synced", "mend the disk") from error
    if segment.is_complete and not segment.is_right:
        segment.truncate()
    log.info("keep segment=%s present=%d", segment.path, segment.present)
    return Synced(segment, segment.generation, segment.fingerprint()) if segment.is_complete else None


def _drop(catalog: Catalog, content: Content, lost: Sequence[Segment]) -> None:
    if not lost:
        return
    log.warning("recover content=%s segments=%d dropped=%d", content.digest, len(content.segments), len(lost))
    catalog.unrecord(((content.id, segment.number) for segment in lost), are_wrong=True)
    for segment in lost:
        segment.truncate()
    catalog.clear_wrong((content.id, segment.number) for segment in lost)


def _sweep(root: Path, contents: Iterable[Content]) -> None:
    known = {content.folder() for content in contents}
    for folder in (root / "content").glob("*/sha256/*/*"):
        if folder not in known:
            log.warning("sweep folder=%s reason=unrecorded", folder)
            shutil.rmtree(folder, ignore_errors=True)
