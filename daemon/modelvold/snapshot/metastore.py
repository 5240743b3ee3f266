"""What snapshots there are. Every method is one transaction; nothing here touches a folder or a mount.

All of them are in memory as well, so that Stat and List, which containerd asks once for every snapshot every few seconds, ask no
database: what a transaction has made of a snapshot is there when it is committed.

Keys and names share one space. A snapshot's number names its folder and is never used again after it was committed to
the database, so that a folder found on disk belongs to exactly one row or to none. Labels with an empty value do not
exist.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modelvold.errors import AlreadyExists, InUse, InvalidInput, NotFound, Refused
from modelvold.snapshot.record import Info, Kind, Layer, Record, Usage
from modelvold.store.database import Database

_SCHEMA = """
CREATE TABLE snapshots (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,        -- the folder's name
    name    TEXT NOT NULL UNIQUE,                     -- an active snapshot's or view's key, a committed one's name
    kind    TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    parent  INTEGER REFERENCES snapshots (number),    -- always a committed one; keeps it from being removed
    labels  TEXT NOT NULL,                            -- a JSON object of strings
    created INTEGER NOT NULL,                         -- nanoseconds since 1970, as are all times here
    updated INTEGER NOT NULL,
    volume  TEXT,                                     -- stands for this volume, and has no folder
    size    INTEGER NOT NULL DEFAULT 0,               -- bytes, taken when it was committed
    inodes  INTEGER NOT NULL DEFAULT 0,
    CHECK (volume IS NULL OR kind = 'committed')
);
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE INDEX snapshots_by_volume ON snapshots (volume) WHERE volume IS NOT NULL;
"""

_SELECT = """
SELECT s.number, s.name, s.kind, coalesce(p.name, ''), s.labels, s.created, s.updated,
       s.volume, s.size, s.inodes, s.parent
FROM snapshots AS s LEFT JOIN snapshots AS p ON p.number = s.parent
"""
_CHAIN = """
WITH RECURSIVE chain (number, parent, volume, depth) AS (
    SELECT number, parent, volume, 0 FROM snapshots WHERE number = ?
    UNION ALL
    SELECT s.number, s.parent, s.volume, depth + 1 FROM snapshots AS s JOIN chain ON s.number = chain.parent
)
SELECT number, volume FROM chain ORDER BY depth
"""
_USERS = """
WITH RECURSIVE users (number) AS (
    SELECT number FROM snapshots WHERE volume = ?
    UNION
    SELECT s.number FROM snapshots AS s JOIN users ON s.parent = users.number
)
"""


class Metastore:
    """Errors: NotFound, AlreadyExists, InvalidInput, Refused and InUse, as each method says."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.ensure("snapshot", 1, _SCHEMA)
        self._changing = threading.Lock()  # held over a transaction, and until _records says what it did
        with database.read() as cursor:
            self._records = {record.info.name: record for record in _all(cursor)}

    def get(self, name: str) -> Record:
        """Raises NotFound."""
        record = self._records.get(name)
        if record is None:
            raise _missing(name)
        return record

    def find(self, name: str) -> Record | None:
        return self._records.get(name)

    def list(self, matches: Callable[[Info], bool]) -> Sequence[Info]:
        found = [record for record in list(self._records.values()) if matches(record.info)]
        found.sort(key=lambda record: record.layer.number)
        return [record.info for record in found]

    def users(self, volume: str) -> Sequence[Info]:
        """The snapshots that stand for `volume` or have it below them, the youngest first."""
        with self._database.read() as cursor:
            rows = cursor.execute(
                _USERS + _SELECT + "JOIN users USING (number) ORDER BY s.number DESC", (volume,)
            ).fetchall()
        return [_info(row) for row in rows]

    def volumes(self) -> set[str]:
        with self._database.read() as cursor:
            rows = cursor.execute("SELECT DISTINCT volume FROM snapshots WHERE volume IS NOT NULL").fetchall()
        return {volume for (volume,) in rows}

    @contextmanager
    def folders(self) -> Iterator[set[int]]:
        """The numbers that have a folder. None is added or taken while the block runs."""
        with self._database.write() as cursor:
            yield {number for (number,) in cursor.execute("SELECT number FROM snapshots WHERE volume IS NULL")}

    def create(
        self, key: str, kind: Kind, parent: str, labels: Mapping[str, str], make: Callable[[Record], None]
    ) -> Record:
        """Adds an active snapshot or a view on the committed `parent`, or on nothing if that is empty.

        `make` makes its folder, within the transaction: when it raises, there is no snapshot. Raises AlreadyExists
        (key), NotFound (parent), InvalidInput (parent not committed, empty key).
        """
        with self._changing:
            with self._database.write() as cursor:
                above = _parent_number(cursor, parent)
                _insert(cursor, key, kind, above, labels)
                record = _record(cursor, key)
                make(record)
            self._records[key] = record
        return record

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str], usage: Usage) -> None:
        """Makes the active `key` the committed `name`, with just these labels. `parent` may name one for a snapshot
        that had none. Raises AlreadyExists (name), NotFound (key, parent), Refused (key not active), InvalidInput
        (another parent)."""
        with self._changing:
            with self._database.write() as cursor:
                _check_free(cursor, name)
                was = _record(cursor, key)
                if was.info.kind is not Kind.ACTIVE:
                    raise Refused(f"snapshot {key!r}: cannot commit it, it is {was.info.kind.value} and not active")
                if parent and was.info.parent and parent != was.info.parent:
                    raise InvalidInput(
                        f"snapshot {key!r}: cannot commit it on {parent!r}, its parent is {was.info.parent!r}"
                    )
                above = _parent_number(cursor, parent or was.info.parent)
                now = time.time_ns()
                cursor.execute(
                    "UPDATE snapshots SET name = ?, kind = 'committed', parent = ?, labels = ?, created = ?, updated = ?,"
                    " size = ?, inodes = ? WHERE number = ?",
                    (name, above, _to_json(labels), now, now, usage.size, usage.inodes, was.layer.number),
                )
                record = _record(cursor, name)
            self._records[name] = record
            del self._records[key]

    def commit_volume(self, name: str, labels: Mapping[str, str], volume: str) -> None:
        """Adds the committed `name`, without a parent, which stands for `volume`. Raises AlreadyExists."""
        with self._changing:
            with self._database.write() as cursor:
                _insert(cursor, name, Kind.COMMITTED, None, labels, volume=volume)
                record = _record(cursor, name)
            self._records[name] = record

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """Replaces all labels (no paths, or `labels`) or some of them (`labels.<label>`: absent in `labels` means
        gone). Raises NotFound, and InvalidInput for any other path: nothing else of a snapshot can change."""
        with self._changing:
            with self._database.write() as cursor:
                new = dict(_record(cursor, name).info.labels)
                for path in paths or ("labels",):
                    field, dot, label = path.partition(".")
                    if field != "labels" or (dot and not label):
                        raise InvalidInput(f"snapshot {name!r}: its {path[:100]!r} cannot be changed, only labels can")
                    if dot:
                        new[label] = labels.get(label, "")
                    else:
                        new = dict(labels)
                cursor.execute(
                    "UPDATE snapshots SET labels = ?, updated = ? WHERE name = ?", (_to_json(new), time.time_ns(), name)
                )
                record = _record(cursor, name)
            self._records[name] = record
        return record.info

    def remove(self, name: str) -> bool:
        """False if there is no such snapshot. Raises InUse while another has it as its parent."""
        with self._changing:
            with self._database.write() as cursor:
                row = cursor.execute("SELECT number FROM snapshots WHERE name = ?", (name,)).fetchone()
                if row is None:
                    return False
                child = cursor.execute("SELECT name FROM snapshots WHERE parent = ?", row).fetchone()
                if child is not None:
                    raise InUse(
                        f"cannot remove snapshot {name!r}: it is the parent of {child[0]!r}", "remove that first"
                    )
                cursor.execute("DELETE FROM snapshots WHERE number = ?", row)
            del self._records[name]
            return True


def _parent_number(cursor: sqlite3.Cursor, parent: str) -> int | None:
    if not parent:
        return None
    row = cursor.execute("SELECT number, kind FROM snapshots WHERE name = ?", (parent,)).fetchone()
    if row is None:
        raise NotFound(f"parent snapshot {parent!r}: there is none of this name")
    if row[1] != Kind.COMMITTED.value:
        raise InvalidInput(f"parent snapshot {parent!r}: it is {row[1]}, not committed")
    return int(row[0])


def _check_free(cursor: sqlite3.Cursor, name: str) -> None:
    if not name:
        raise InvalidInput("snapshot: the key is empty")
    if cursor.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
        raise AlreadyExists(f"snapshot {name!r}: it exists")


def _insert(
    cursor: sqlite3.Cursor,
    name: str,
    kind: Kind,
    parent: int | None,
    labels: Mapping[str, str],
    *,
    volume: str | None = None,
) -> None:
    _check_free(cursor, name)
    now = time.time_ns()
    cursor.execute(
        "INSERT INTO snapshots (name, kind, parent, labels, created, updated, volume) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, kind.value, parent, _to_json(labels), now, now, volume),
    )


def _record(cursor: sqlite3.Cursor, name: str) -> Record:
    row = cursor.execute(_SELECT + "WHERE s.name = ?", (name,)).fetchone()
    if row is None:
        raise _missing(name)
    number, *_, volume, size, inodes, parent = row
    parents = [] if parent is None else cursor.execute(_CHAIN, (parent,)).fetchall()
    return Record(_info(row), Layer(number, volume), Usage(size, inodes), tuple(Layer(*layer) for layer in parents))


def _missing(name: str) -> NotFound:
    return NotFound(f"snapshot {name!r}: there is none of this name")


def _all(cursor: sqlite3.Cursor) -> list[Record]:
    rows = {row[0]: row for row in cursor.execute(_SELECT + "ORDER BY s.number")}

    def chain(number: int | None) -> Iterator[Layer]:
        while number is not None:
            *_, volume, _, _, above = rows[number]
            yield Layer(number, volume)
            number = above

    def record(row: Sequence[Any]) -> Record:
        number, *_, volume, size, inodes, above = row
        return Record(_info(row), Layer(number, volume), Usage(size, inodes), tuple(chain(above)))

    return [record(row) for row in rows.values()]


def _info(row: Sequence[object]) -> Info:
    _, name, kind, parent, labels, created, updated, *_ = row
    return Info(str(name), str(parent), Kind(kind), json.loads(str(labels)), int(str(created)), int(str(updated)))


def _to_json(labels: Mapping[str, str]) -> str:
    return json.dumps({label: value for label, value in labels.items() if value}, ensure_ascii=False)
