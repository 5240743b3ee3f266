"""SQLite as the rooms use it: one writer, readers that never wait for it, every commit synced.

`synchronous=FULL` because the removal of a record must be on disk before its segment is truncated: with NORMAL a power cut brings
deleted records back, and with them segments full of zeros.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelvold.errors import Exhausted, Failing, Failure, Refused


class Database:
    """One file. `write` commits or rolls back as a whole; `read` sees the last commit. Both may be used from any thread.

    Making one raises Failing where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = threading.Lock()  # guards _writer: one transaction at a time
        self._read_lock = threading.Lock()  # guards _reader: one statement's rows at a time
        try:
            self._open()
        except sqlite3.Error as error:
            # SQLite calls a full disk an I/O error.
            free = shutil.disk_usage(path.parent).free
            raise Failing(f"{path}: {error}; its disk has {free} bytes free", "make room on it, or mend it") from error

    def _open(self) -> None:
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._reader = self._connect()
        with self.write() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS schema (room TEXT PRIMARY KEY, version INTEGER NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A transaction; committed and synced when the block ends, rolled back when it raises.

        Raises Exhausted where the disk has no room for it, Failing where SQLite cannot write; IntegrityError is the block's own.
        """
        with self._write_lock:
            cursor = self._writer.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:
                    cursor.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise self._failure(error) from error
                raise
            finally:
                cursor.close()

    def _failure(self, error: sqlite3.OperationalError) -> Failure:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return Exhausted(f"{self._path}: {error}", "make room on its disk")
        return Failing(f"{self._path}: {error}", "see its disk")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Cursor]:
        with self._read_lock:
            cursor = self._reader.cursor()
            try:
                yield cursor
            finally:
                cursor.close()

    def ensure(self, room: str, version: int, script: str) -> None:
        """Creates a room's tables by `script` (statements ended by `;`, none inside a literal) when they are not there.

        Raises Refused when the file was written with another version of them.
        """
        with self.write() as cursor:
            row = cursor.execute("SELECT version FROM schema WHERE room = ?", (room,)).fetchone()
            if row is None:
                for statement in script.split(";\n"):
                    if statement.strip():
                        cursor.execute(statement)
                cursor.execute("INSERT INTO schema VALUES (?, ?)", (room, version))
            elif row[0] != version:
                raise Refused(
                    f"{self._path}: its {room} tables have version {row[0]}, this program knows {version}",
                    "run the version that wrote it, or move the store away",
                )

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()
