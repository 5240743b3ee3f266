"""What survives a restart: contents and their segments, volumes, and what the façade has given (`store.given`). The schema is the
documentation.

Every method is one transaction. Nothing here opens a segment file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modelvold.errors import NotFound
from modelvold.layer.extent import ContentOffset, Extent
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.oci.reference import Repository
from modelvold.store.database import Database

_VERSION = 3
_SCHEMA = """
-- The bytes of one blob, read one way, in one place of the store. `source` is the repository they came from and that alone may
-- have them, '' for the shared place of verified ones. `reason` says why a quarantined content is one. `toc` is what the headers
-- of a tar said when it was first opened (layer.toc.encode); a raw layer needs none.
CREATE TABLE content (
  id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: a late record of a removed content must not hit its successor
  digest TEXT NOT NULL,
  reading TEXT NOT NULL,
  source TEXT NOT NULL,
  length INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('unverified', 'verified', 'quarantined')),
  reason TEXT NOT NULL DEFAULT '',
  toc BLOB,
  scrubbed INTEGER NOT NULL DEFAULT 0, -- seconds since 1970: when all of it that was durable was last read again
  UNIQUE (digest, reading, source)
);
-- How a content is cut, decided once. `fingerprint` is set after the segment's bytes were synced, and unset, synced, before they go.
-- `moved`: they lie in the content's whole files, and the segment's own file is empty; set after those were synced. `digest` is the
-- sha256 of the bytes that belong here, known for those that were evicted after their content was verified: what is fetched again
-- must have it. It is never unset, for a blob's digest says for all time what its bytes are. `wrong`: its bytes were found wrong, and are
-- not truncated yet.
CREATE TABLE segment (
  content INTEGER NOT NULL REFERENCES content ON DELETE CASCADE,
  number INTEGER NOT NULL,
  start INTEGER NOT NULL,
  length INTEGER NOT NULL,
  fingerprint BLOB,
  digest BLOB,
  wrong INTEGER NOT NULL DEFAULT 0,
  moved INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (content, number)
) WITHOUT ROWID;
-- Sources that have answered for a shared content's blob with their own credentials.
CREATE TABLE answered (
  content INTEGER NOT NULL REFERENCES content ON DELETE CASCADE,
  source TEXT NOT NULL,
  PRIMARY KEY (content, source)
) WITHOUT ROWID;
-- One model as one tree. `document` is its manifest. `opened_through` is the mount of the store through which the kernel opened its
-- segments when it was last mounted. `used`: seconds since 1970, when it was last given to somebody or found in use. A `pinned` one
-- is neither evicted nor forgotten.
CREATE TABLE volume (
  id TEXT PRIMARY KEY,
  repository TEXT NOT NULL,
  manifest TEXT NOT NULL,
  reference TEXT NOT NULL,
  document BLOB NOT NULL,
  uuid BLOB NOT NULL,
  size INTEGER NOT NULL,
  created INTEGER NOT NULL,
  opened_through TEXT NOT NULL DEFAULT '',
  used INTEGER NOT NULL,
  pinned INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE volume_layer (
  volume TEXT NOT NULL REFERENCES volume ON DELETE CASCADE,
  position INTEGER NOT NULL,
  content INTEGER NOT NULL REFERENCES content,
  PRIMARY KEY (volume, position)
) WITHOUT ROWID;
-- The boot of the machine in which the store was last opened, one row.
CREATE TABLE life (boot TEXT NOT NULL);
-- Folders where an operator has a volume mounted.
CREATE TABLE placed (
  directory TEXT PRIMARY KEY,
  volume TEXT NOT NULL REFERENCES volume
);
-- Synthetic images the façade has given out: a digest cannot be inverted, so the original's manifest is kept.
CREATE TABLE given (
  synthetic TEXT PRIMARY KEY,
  repository TEXT NOT NULL,
  original TEXT NOT NULL,
  document BLOB NOT NULL,
  private INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class ContentRow:
    id: int
    digest: Digest
    reading: Reading
    source: str
    length: int
    state: str
    reason: str
    scrubbed: int = 0


@dataclass(frozen=True, slots=True)
class NewContent:
    """One that is to be made: `length` in bytes, cut into the extents `cut`. `toc` is the encoded one of a tar."""

    digest: Digest
    reading: Reading
    source: str
    length: int
    cut: Sequence[Extent]
    toc: bytes | None = None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    number: int
    extent: Extent
    fingerprint: bytes | None
    is_moved: bool = False
    digest: bytes | None = None
    is_wrong: bool = False


@dataclass(frozen=True, slots=True)
class VolumeRow:
    id: str
    repository: Repository
    manifest: Digest
    reference: str
    document: bytes = field(repr=False)
    uuid: bytes
    size: int
    contents: tuple[int, ...]
    used: int = 0
    is_pinned: bool = False


class Catalog:
    def __init__(self, database: Database) -> None:
        self._db = database
        database.ensure("store", _VERSION, _SCHEMA)

    # -- contents

    def contents(self) -> list[ContentRow]:
        with self._db.read() as cursor:
            rows = cursor.execute(
                "SELECT id, digest, reading, source, length, state, reason, scrubbed FROM content"
            ).fetchall()
        return [_content(row) for row in rows]

    def segments(self, content: int) -> list[SegmentRow]:
        with self._db.read() as cursor:
            rows = cursor.execute(
                "SELECT number, start, length, fingerprint, moved, digest, wrong FROM segment WHERE content = ? ORDER BY number",
                (content,),
            ).fetchall()
        return [
            SegmentRow(
                number,
                Extent(ContentOffset(start), ContentOffset(start + length)),
                fingerprint,
                is_moved=bool(moved),
                digest=sha256,
                is_wrong=bool(wrong),
            )
            for number, start, length, fingerprint, moved, sha256, wrong in rows
        ]

    def toc(self, content: int) -> bytes | None:
        """What the headers of a tar said; None for other contents."""
        with self._db.read() as cursor:
            row = cursor.execute("SELECT toc FROM content WHERE id = ?", (content,)).fetchone()
        return row[0] if row else None

    def add_contents(self, contents: Iterable[NewContent]) -> list[ContentRow]:
        """All of them or none."""
        rows = []
        with self._db.write() as cursor:
            for new in contents:
                cursor.execute(
                    "INSERT INTO content (digest, reading, source, length, state, toc) VALUES (?, ?, ?, ?, 'unverified', ?)",
                    (str(new.digest), new.reading.value, new.source, new.length, new.toc),
                )
                number = cursor.lastrowid or 0
                cursor.executemany(
                    "INSERT INTO segment (content, number, start, length) VALUES (?, ?, ?, ?)",
                    [(number, n, extent.start, extent.end - extent.start) for n, extent in enumerate(new.cut)],
                )
                rows.append(ContentRow(number, new.digest, new.reading, new.source, new.length, "unverified", ""))
        return rows

    def record_durable(self, fingerprints: Iterable[tuple[int, int, bytes]]) -> None:
        """(content, segment number, fingerprint) of segments whose bytes are on disk."""
        with self._db.write() as cursor:
            cursor.executemany(
                "UPDATE segment SET fingerprint = ?, wrong = 0 WHERE content = ? AND number = ?",
                ((f, c, n) for c, n, f in fingerprints),
            )

    def unrecord(self, segments: Iterable[tuple[int, int]], *, are_wrong: bool = False) -> None:
        """Synced when this returns: only then may the bytes go. A verified content is so no longer, where what comes instead has no
        digest that it must have. `are_wrong`: whoever finds their bytes all the same must not keep them."""
        gone = list(segments)
        with self._db.write() as cursor:
            cursor.executemany(
                "UPDATE segment SET fingerprint = NULL, moved = 0, wrong = ? WHERE content = ? AND number = ?",
                ((are_wrong, content, number) for content, number in gone),
            )
            cursor.executemany(
                """
                UPDATE content SET state = 'unverified' WHERE id = ? AND state = 'verified' AND EXISTS (
                  SELECT 1 FROM segment WHERE content = content.id AND fingerprint IS NULL AND digest IS NULL)
                """,
                ((content,) for content in {content for content, _ in gone}),
            )

    def clear_wrong(self, segments: Iterable[tuple[int, int]]) -> None:
        """Their wrong bytes are truncated."""
        with self._db.write() as cursor:
            cursor.executemany("UPDATE segment SET wrong = 0 WHERE content = ? AND number = ?", segments)

    def keep_digests(self, digests: Iterable[tuple[int, int, bytes]]) -> None:
        """(content, segment number, sha256) of verified segments, which they must have when they are fetched again."""
        with self._db.write() as cursor:
            cursor.executemany(
                "UPDATE segment SET digest = ? WHERE content = ? AND number = ?", ((d, c, n) for c, n, d in digests)
            )

    def fingerprint(self, content: int, number: int) -> bytes | None:
        """xxh3-64 of a durable segment's bytes; None for one that is not recorded."""
        with self._db.read() as cursor:
            row = cursor.execute(
                "SELECT fingerprint FROM segment WHERE content = ? AND number = ?", (content, number)
            ).fetchone()
        return row[0] if row else None

    def scrubbed(self, content: int, when: int) -> None:
        """All of it that is durable was read again, and found right or dropped; `when` in seconds since 1970."""
        with self._db.write() as cursor:
            cursor.execute("UPDATE content SET scrubbed = ? WHERE id = ?", (when, content))

    def record_moved(self, content: int, number: int) -> None:
        """The segment's bytes are, synced, in the content's whole files: its own file may be emptied."""
        with self._db.write() as cursor:
            cursor.execute("UPDATE segment SET moved = 1 WHERE content = ? AND number = ?", (content, number))

    def set_state(self, content: int, state: str, reason: str = "") -> None:
        with self._db.write() as cursor:
            cursor.execute("UPDATE content SET state = ?, reason = ? WHERE id = ?", (state, reason, content))

    def share(self, content: int) -> None:
        """The content's folder has moved to the shared place; where it came from has answered for it. May be said twice."""
        with self._db.write() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO answered SELECT id, source FROM content WHERE id = ? AND source != ''",
                (content,),
            )
            cursor.execute("UPDATE content SET source = '' WHERE id = ?", (content,))

    def remove_content(self, content: int) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM content WHERE id = ?", (content,))

    def has_answered(self, content: int, source: str) -> bool:
        with self._db.read() as cursor:
            return (
                cursor.execute("SELECT 1 FROM answered WHERE content = ? AND source = ?", (content, source)).fetchone()
                is not None
            )

    def answered(self, content: int, source: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("INSERT OR IGNORE INTO answered VALUES (?, ?)", (content, source))

    # -- volumes

    def volumes(self) -> list[VolumeRow]:
        with self._db.read() as cursor:
            rows = cursor.execute(
                "SELECT id, repository, manifest, reference, document, uuid, size, used, pinned FROM volume ORDER BY created"
            ).fetchall()
            layers = cursor.execute("SELECT volume, content FROM volume_layer ORDER BY volume, position").fetchall()
        contents: dict[str, list[int]] = {}
        for volume, content in layers:
            contents.setdefault(volume, []).append(content)
        return [_volume(row, tuple(contents.get(row[0], ()))) for row in rows]

    def volume(self, volume: str) -> VolumeRow:
        """Raises NotFound."""
        found = next((row for row in self.volumes() if row.id == volume), None)
        if found is None:
            raise NotFound(f"volume {volume}: not in the store")
        return found

    def add_volume(self, volume: VolumeRow) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                """
                INSERT INTO volume (id, repository, manifest, reference, document, uuid, size, created, used)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (
                    volume.id,
                    str(volume.repository),
                    str(volume.manifest),
                    volume.reference,
                    volume.document,
                    volume.uuid,
                    volume.size,
                    time.time_ns(),
                    volume.used,
                ),
            )
            cursor.executemany(
                "INSERT INTO volume_layer VALUES (?, ?, ?)",
                ((volume.id, n, content) for n, content in enumerate(volume.contents)),
            )

    def remove_volume(self, volume: str) -> list[int]:
        """And the contents that no other volume names; which those were."""
        unnamed = "FROM content WHERE id NOT IN (SELECT content FROM volume_layer)"
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM volume WHERE id = ?", (volume,))
            found = [number for (number,) in cursor.execute(f"SELECT id {unnamed}")]
            cursor.execute(f"DELETE {unnamed}")
            return found

    def set_reference(self, volume: str, reference: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("UPDATE volume SET reference = ? WHERE id = ?", (reference, volume))

    def use(self, volumes: Iterable[str], when: int) -> None:
        """They were given to somebody, or are in use, at `when`, in seconds since 1970."""
        with self._db.write() as cursor:
            cursor.executemany("UPDATE volume SET used = ? WHERE id = ?", ((when, volume) for volume in volumes))

    def pin(self, volume: str, *, is_pinned: bool) -> None:
        with self._db.write() as cursor:
            cursor.execute("UPDATE volume SET pinned = ? WHERE id = ?", (is_pinned, volume))

    def begin_life(self, boot: str) -> str:
        """The boot in which the store was opened before, empty at first; from now on it is `boot`."""
        with self._db.write() as cursor:
            row = cursor.execute("SELECT boot FROM life").fetchone()
            cursor.execute("DELETE FROM life")
            cursor.execute("INSERT INTO life VALUES (?)", (boot,))
        return str(row[0]) if row else ""

    def opened_through(self, volume: str) -> str:
        with self._db.read() as cursor:
            row = cursor.execute("SELECT opened_through FROM volume WHERE id = ?", (volume,)).fetchone()
        return str(row[0]) if row else ""

    def set_opened_through(self, volume: str, mount: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("UPDATE volume SET opened_through = ? WHERE id = ?", (mount, volume))

    def placed(self) -> dict[str, str]:
        """Folder → volume."""
        with self._db.read() as cursor:
            return dict(cursor.execute("SELECT directory, volume FROM placed").fetchall())

    def place(self, directory: str, volume: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("INSERT OR REPLACE INTO placed VALUES (?, ?)", (directory, volume))

    def unplace(self, directory: str) -> None:
        with self._db.write() as cursor:
            cursor.execute("DELETE FROM placed WHERE directory = ?", (directory,))


def _content(row: tuple[int, str, str, str, int, str, str, int]) -> ContentRow:
    number, digest, reading, source, length, state, reason, scrubbed = row
    return ContentRow(number, Digest.parse(digest), Reading(reading), source, length, state, reason, scrubbed)


def _volume(row: tuple[str, str, str, str, bytes, bytes, int, int, int], contents: tuple[int, ...]) -> VolumeRow:
    name, repository, manifest, reference, document, uuid, size, used, pinned = row
    named = Repository.parse(repository), Digest.parse(manifest), reference
    return VolumeRow(name, *named, document, uuid, size, contents, used, bool(pinned))
