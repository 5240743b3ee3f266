"""A content: one blob's bytes, cut into segments, in one folder of the store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from modelvold.errors import Failure
from modelvold.layer.extent import Extent
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import ContentRow
from modelvold.store.segment import Segment, file_name

SHARED = "verified"
#: The folder of whole files in a content's own.
WHOLE = "whole"


class Content:
    """`source` is the repository whose unverified bytes these are, empty once they lie in the shared place.

    `state` is one of unverified, verified, quarantined. The store alone changes it. Of a verified content what was evicted has a digest
    that it must have when it comes again; what is here was found right, or had that.
    """

    __slots__ = (
        "_suspects",
        "digest",
        "id",
        "last_error",
        "length",
        "reading",
        "reason",
        "root",
        "scrubbed",
        "segments",
        "source",
        "state",
    )

    def __init__(self, root: Path, row: ContentRow, cut: Iterable[Extent]) -> None:
        self.root = root
        self.id = row.id
        self.digest: Digest = row.digest
        self.reading: Reading = row.reading
        self.source = row.source
        self.length = row.length
        self.state = row.state
        self.reason = row.reason
        self.scrubbed = row.scrubbed
        self.last_error: Failure | None = None
        self._suspects: dict[str, float] = {}  # hosts that may have sent wrong bytes, and until when they are not asked
        folder = self.folder
        self.segments = tuple(Segment(folder, number, extent, self) for number, extent in enumerate(cut))

    def __repr__(self) -> str:
        return f"<content {self.digest.short}.{self.reading.value} {self.state} {self.present}/{self.length}>"

    @property
    def served_by(self) -> set[str]:
        """The hosts that what is here came from, as far as this daemon has fetched it."""
        return {host for segment in self.segments for host in segment.hosts}

    @property
    def suspects(self) -> set[str]:
        """Hosts that may have sent wrong bytes: not asked for a while."""
        now = time.monotonic()
        return {host for host, until in self._suspects.items() if until > now}

    def suspect(self, hosts: Iterable[str], seconds: float) -> None:
        self._suspects |= dict.fromkeys(hosts, time.monotonic() + seconds)

    def folder(self) -> Path:
        return folder_of(self.root, self.digest, self.reading, self.source)

    def files(self, folder: Path) -> list[str]:
        """Its segments' files in order, by their paths, where its own folder is shown as `folder`."""
        return [f"{folder}/{file_name(number)}" for number in range(len(self.segments))]

    def whole(self, number: int) -> Path:
        """Where its file of this number lies, once it is whole (`store.whole`)."""
        return self.folder() / WHOLE / str(number)

    @property
    def is_whole(self) -> bool:
        """Whether its bytes lie in whole files."""
        return bool(self.segments) and all(segment.moved for segment in self.segments)

    @property
    def present(self) -> int:
        """Bytes in segment files, padding left out."""
        return sum(segment.filled for segment in self.segments)

    @property
    def durable(self) -> int:
        return sum(segment.length for segment in self.segments if segment.durable)

    @property
    def verified(self) -> int:
        return self.durable if self.is_verified else 0

    @property
    def is_durable(self) -> bool:
        return all(segment.durable for segment in self.segments)

    @property
    def is_checked(self) -> bool:
        """Whether each segment is durable or has a digest that it must have when it comes."""
        return all(segment.durable or segment.digest is not None for segment in self.segments)

    @property
    def is_verified(self) -> bool:
        return self.state == "verified"


def content_of(segment: Segment) -> Content:
    owner = segment.owner
    assert isinstance(owner, Content)  # noqa: S101 — segments are made here alone
    return owner


def source_folder(source: str) -> str:
    """A folder name for a repository: readable enough, and never two for one name."""
    return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}" if source else SHARED


def folder_of(root: Path, digest: Digest, reading: Reading, source: str) -> Path:
    return root / "content" / source_folder(source) / "sha256" / digest.hex[:2] / f"{digest.hex}.{reading.value}"
