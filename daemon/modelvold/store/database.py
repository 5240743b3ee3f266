"""SQLite as the rooms use it: one writer, readers that never wait for it, every commit synced.

`synchronous=FULL` because the removal of a record must be on disk before its segment is truncated: with NORMAL a power cut brings
deleted records back, and with them segments full of zeros.

Beside the file lies a *ballast*, which holds nothing but room: on a full disk it goes, so that records can still be removed, without
which no room could ever be made.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelvold import points
from modelvold.errors import Exhausted, Failing, Failure, Refused
from modelvold.points import Point

log = logging.getLogger(__name__)

#: Bytes. A removal of records takes a few pages of the write-ahead log, a checkpoint may copy all of that; the probe at the start
#: takes nearly all of it.
_BALLAST = 4 << 20
#: With less than this free a transaction might find no room.
_LEAST_FREE = _BALLAST // 4


class Database:
    """One file. `write` commits or rolls back as a whole; `read` sees the last commit. Both may be used from any thread.

    Making one raises Failing where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ballast = path.with_name("ballast")
        self._write_lock = threading.Lock()  # guards _writer: one transaction at a time
        self._read_lock = threading.Lock()  # guards _reader: one statement's rows at a time
        self._drop_ballast(_LEAST_FREE)  # to open it takes some, too
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
        self._take_ballast()
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
            is_dropped = self._drop_ballast(_LEAST_FREE)
            cursor = self._writer.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                points.at(Point.CATALOG_BEGUN)
                yield cursor
                cursor.execute("COMMIT")
                points.at(Point.CATALOG_COMMITTED)
            except BaseException as error:
                if self._writer.in_transaction:
                    cursor.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise self._failure(error) from error
                raise
            finally:
                cursor.close()
                if is_dropped:  # again, before somebody else has it
                    self._take_ballast()

    def refill(self) -> None:
        """The ballast is whole again, where there is room for it and for a transaction."""
        if self.owed and self._available() > _BALLAST + _LEAST_FREE:
            with self._write_lock:
                self._take_ballast()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While the block lasts, the ballast's room is free, where the disk is full."""
        with self._write_lock:
            is_lent = self._drop_ballast(_BALLAST)
        try:
            yield
        finally:
            if is_lent:
                with self._write_lock:
                    self._take_ballast()

    @property
    def owed(self) -> int:
        """Bytes that the ballast lacks: nobody else in this store is to take them."""
        try:
            return max(0, _BALLAST - self._ballast.stat().st_size)
        except FileNotFoundError:
            return _BALLAST

    def _take_ballast(self) -> None:
        """As much of it as there is room for."""
        if not self.owed:
            return
        with suppress(OSError):
            descriptor = os.open(self._ballast, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                for size in (_BALLAST, _BALLAST // 2, _BALLAST // 4):
                    os.ftruncate(descriptor, 0)
                    with suppress(OSError):
                        os.posix_fallocate(descriptor, 0, size)
                        return
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)

    def _drop_ballast(self, needed: int) -> bool:
        """Where there is not so much room: whether there was one to drop."""
        if self.owed == _BALLAST or self._has_room(needed):
            return False
        log.debug("drop ballast path=%s reason='the disk is full'", self._ballast)
        os.truncate(self._ballast, 0)
        return True

    def _has_room(self, needed: int) -> bool:
        """What is free and what of it is for us is not the same for root, nor on every file system: near the end it is tried."""
        if self._available() > needed:
            return True
        try:
            descriptor = os.open(self._path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, needed)
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True

    def _available(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize

    def _failure(self, error: sqlite3.OperationalError) -> Failure:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return Exhausted(f"{self._path}: {error}", "make room on its disk")
        return Failing(f"{self._path}: {error}", "see its disk")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Cursor]:
        """What the last commit left. Raises Failing where it cannot be read."""
        with self._read_lock:
            cursor = self._reader.cursor()
            try:
                yield cursor
            except sqlite3.OperationalError as error:
                raise self._failure(error) from error
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
