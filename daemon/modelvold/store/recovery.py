"""What a start trusts: only recorded segments whose length agrees; everything else goes (rule 2)."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelvold.store.catalog import Catalog, ContentRow, SegmentRow
from modelvold.store.content import Content, folder_of
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


def recover(root: Path, catalog: Catalog) -> list[Content]:
    """The contents of the catalog as they lie on disk, both made to agree. Nobody else has the store."""
    rows = catalog.contents()
    shared = {(row.digest, row.reading) for row in rows if not row.source}
    contents = []
    for row in rows:
        settled = row if (row.digest, row.reading) in shared else _settled(root, catalog, row)
        segments = catalog.segments(row.id)
        content = Content(root, settled, segments)
        _drop(catalog, content, _untrusted(content, segments))
        if content.is_verified and not content.is_durable:
            content.state = "unverified"
            catalog.set_state(content.id, "unverified")
        if not any(segment.moved for segment in content.segments):
            shutil.rmtree(content.whole(0).parent, ignore_errors=True)
        contents.append(content)
    known = {content.folder() for content in contents}
    for folder in (root / "content").glob("*/sha256/*/*"):
        if folder not in known:
            log.warning("sweep folder=%s reason=unrecorded", folder)
            shutil.rmtree(folder, ignore_errors=True)
    return contents


def _settled(root: Path, catalog: Catalog, row: ContentRow) -> ContentRow:
    """Finishes a move to the shared place that a crash cut short."""
    shared = folder_of(root, row.digest, row.reading, "")
    if (
        row.source
        and row.state == "verified"
        and not folder_of(root, row.digest, row.reading, row.source).exists()
        and shared.exists()
    ):
        catalog.share(row.id, row.source)
        return ContentRow(row.id, row.digest, row.reading, "", row.length, row.state, row.reason)
    return row


def _untrusted(content: Content, rows: Sequence[SegmentRow]) -> list[Segment]:
    """Sets what is trusted; gives the segments that have bytes or a record and are not."""
    content.folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    has_whole = content.whole(0).parent.is_dir()
    lost: list[Segment] = []
    for segment, row in zip(content.segments, rows, strict=True):
        descriptor = os.open(segment.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        state = os.fstat(descriptor)
        os.close(descriptor)
        segment.inode = state.st_ino
        is_whole = row.fingerprint is not None and row.is_moved and has_whole
        if is_whole or (row.fingerprint is not None and not row.is_moved and state.st_size == segment.padded):
            segment.present, segment.durable = segment.padded, True
        elif row.fingerprint is not None or state.st_size:
            lost.append(segment)
        if is_whole:
            segment.empty()
    if lost and any(segment.moved for segment in content.segments):
        return list(content.segments)  # no digest can be taken of what lies here and there
    return lost


def _drop(catalog: Catalog, content: Content, lost: Sequence[Segment]) -> None:
    if not lost:
        return
    log.warning("recover content=%s segments=%d dropped=%d", content.digest, len(content.segments), len(lost))
    catalog.unrecord((content.id, segment.number) for segment in lost)
    if content.is_verified:
        content.state = "unverified"
    for segment in lost:
        segment.truncate()
