"""What the façade has given out, and may be asked for again after tags have moved and daemons were restarted.

Its table is in the catalog's schema.
"""

from __future__ import annotations

from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import GivenSynthetic
from modelvold.store.database import Database


class Given:
    """Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def synthetic_of(self, digest: Digest) -> GivenSynthetic | None:
        """What the façade gave under this synthetic digest."""
        with self._db.read() as cursor:
            row = cursor.execute(
                "SELECT repository, original, document, private FROM given WHERE synthetic = ?", (str(digest),)
            ).fetchone()
        if row is None:
            return None
        return GivenSynthetic(digest, Repository.parse(row[0]), Digest.parse(row[1]), row[2], bool(row[3]))

    def document_of(self, repository: Repository, original: Digest) -> bytes | None:
        """The manifest of a model that the façade gave or that is a volume here."""
        key = (str(repository), str(original))
        with self._db.read() as cursor:
            row = cursor.execute("SELECT document FROM given WHERE repository = ? AND original = ?", key).fetchone()
            if row is None:
                row = cursor.execute(
                    "SELECT document FROM volume WHERE repository = ? AND manifest = ?", key
                ).fetchone()
        return bytes(row[0]) if row else None

    def record(self, given: GivenSynthetic) -> None:
        with self._db.write() as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO given VALUES (?, ?, ?, ?, ?)",
                (str(given.synthetic), str(given.repository), str(given.original), given.document, given.private),
            )
