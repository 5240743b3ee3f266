"""One segment: one file that only grows by appending, and is only ever truncated to zero (rule 3).

    missing ──append…──▶ present ──sync──▶ durable (recorded) ──copy, sync, record──▶ moved
       ▲                                      │                                          │
       └───────────── truncate ◀── unrecord ──┴──────────────────────────────────────────┘

The bytes of a moved one lie in the content's whole files (`store.whole`), and its own is empty: it counts as present.

What of it a reader may have is `shown`: nothing while it is *leaving*, that is, from before its record goes until it is truncated,
since a read that is allowed reaches the file later; and nothing while it is *withheld*, until what must match first has matched.

One `Writer` at a time. Check of the size, append and truncate exclude each other under the segment's lock, the one lock of the
house that is held over I/O: a late buffer must never land behind a truncation, or the hole would be read as zeros.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import xxhash

from modelvold.errors import Failing, Failure, Refused
from modelvold.layer.extent import Extent, padded
from modelvold.linux.files import set_aside

_PIECE = 1 << 20


def file_name(number: int) -> str:
    """Of a segment's file in its content's folder."""
    return f"{number:05d}"


class Segment:
    """`extent` is its place in the content, of `length` bytes, and `padded` how long its complete file is. `present` counts the bytes
    in the file, padding included once it is complete, and goes on counting them when they are `moved`."""

    __slots__ = (
        "_generation",
        "_hash",
        "_is_gone",
        "_lock",
        "_sha256",
        "_writing",
        "digest",
        "durable",
        "extent",
        "failure",
        "folder",
        "hosts",
        "inode",
        "leaving",
        "length",
        "moved",
        "number",
        "owner",
        "padded",
        "present",
        "reserved",
        "touched",
        "was",
        "withheld",
    )

    def __init__(self, folder: Callable[[], Path], number: int, extent: Extent, owner: object) -> None:
        self.folder = folder
        self.number = number
        self.extent = extent
        self.length = extent.end - extent.start
        self.padded = padded(self.length)
        self.owner = owner  # the content; typed where it is made
        self.present = 0
        self.durable = False
        self.moved = False
        self.leaving = False
        self.withheld = False
        self.reserved = False  # the disk has room set aside for all of it
        self.touched = 0.0  # monotonic: when somebody last asked for it, or its last byte came
        self.digest: bytes | None = None  # sha256 of its content's bytes, known since those were verified as a whole
        self.was: bytes | None = None  # sha256 of what was evicted unverified, b"" where that is not known
        self.hosts: tuple[str, ...] = ()  # who sent what there is of it, in this daemon's life
        self.inode = 0
        self.failure: Failure | None = None  # why the last try to fetch it ended; None once bytes flow again
        self._generation = 0
        self._is_gone = False
        self._hash: xxhash.xxh3_64  # over the bytes as they came, from the first writer on; finds rot later, not malice
        self._sha256: hashlib._Hash  # likewise, where `digest` is known
        self._writing = False
        self._lock = threading.Lock()  # guards the file's size, leaving, _generation and _writing

    def __repr__(self) -> str:
        state = "moved" if self.moved else "durable" if self.durable else f"{self.present}/{self.padded}"
        return f"<segment {self.folder().name}/{self.number} {state}>"

    @property
    def path(self) -> Path:
        return self.folder() / file_name(self.number)

    @property
    def is_complete(self) -> bool:
        return self.present == self.padded

    @property
    def shown(self) -> int:
        """Bytes of the file that a reader may have."""
        return 0 if self.leaving or self.withheld else self.present

    @property
    def is_open(self) -> bool:
        """Whether all of it may be read without asking anybody: on disk, recorded, and to stay."""
        return self.durable and not self.leaving and not self.withheld

    @property
    def taken(self) -> int:
        """Bytes of the disk that it takes, or has had set aside."""
        return self.padded if self.reserved else self.present

    @property
    def generation(self) -> int:
        """Counts its truncations: what was begun under another number speaks of bytes that are gone."""
        return self._generation

    @property
    def is_written(self) -> bool:
        """Whether a transfer has the right to append."""
        return self._writing

    @property
    def filled(self) -> int:
        """Bytes of content present."""
        return min(self.present, self.length)

    def writer(self) -> Writer:
        """The right to append, for one `with` block. Raises Refused while another holds it, or where its content is removed."""
        with self._lock:
            if self._is_gone:
                raise Refused(f"segment {self.path}: its content was removed")
            if self._writing:
                raise Refused(f"segment {self.path}: another transfer writes it")
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            if not self.present:
                self._begin_sums()
            self._writing = True
            return Writer(self, descriptor, self._generation)

    def append(self, descriptor: int, generation: int, buffer: memoryview) -> int:
        """Appends all of `buffer` and, behind the last byte of content, the padding. Returns the new size.

        Raises Refused when the segment was truncated since the writer came, or is about to be, Failing when the file is not as
        long as we left it.
        """
        with self._lock:
            if generation != self._generation or self.leaving or self._is_gone:
                raise Refused(f"segment {self.path}: truncated while it was written")
            if len(buffer) > self.length - self.present:
                raise Refused(f"segment {self.path}: {len(buffer)} bytes do not fit behind {self.present}")
            size = os.fstat(descriptor).st_size
            if size != self.present:
                raise Failing(
                    f"segment {self.path}: {size} bytes long where {self.present} were written; somebody else writes the store"
                )
            is_last = self.present + len(buffer) == self.length
            padding = bytes(self.padded - self.length) if is_last else b""
            while buffer or padding:
                written = os.pwritev(descriptor, [buffer, padding], self.present)
                self.present += written
                from_buffer = min(written, len(buffer))
                self._hash.update(buffer[:from_buffer])
                if self.digest is not None or self.was is not None:
                    self._sha256.update(buffer[:from_buffer])
                buffer, padding = buffer[from_buffer:], padding[written - from_buffer :]
            return self.present

    def reserve(self) -> None:
        """Sets room aside on the disk for all of it, so that a full disk is met here and not halfway. Its size stays what it is,
        and reads beyond that stay errors. Raises OSError."""
        with self._lock:
            if self.reserved or self.leaving or self._is_gone:
                return
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                set_aside(descriptor, self.padded)
            finally:
                os.close(descriptor)
            self.reserved = True

    def resume(self) -> None:
        """Goes on where another daemon's life ended: its file holds what was appended then. Synced and summed when this returns.

        Raises OSError.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
            with self._lock:
                self.present = os.fstat(descriptor).st_size
                self._begin_sums()
                for at in range(0, self.filled, _PIECE):
                    piece = os.pread(descriptor, min(_PIECE, self.filled - at), at)
                    self._hash.update(piece)
                    if self.digest is not None:
                        self._sha256.update(piece)
        finally:
            os.close(descriptor)

    def leave(self) -> bool:
        """From now on nobody appends, and no read of it is allowed: it is about to be truncated. False where it was so already."""
        with self._lock:
            was, self.leaving = self.leaving, True
        return not was

    def stay(self) -> None:
        """It is truncated and may come again; or it is not truncated after all."""
        with self._lock:
            self.leaving = False

    def truncate(self) -> None:
        """Back to missing. The caller has removed its record, synced, had events raised again and waited for reads under way.

        Raises OSError when the file cannot be truncated: it counts as missing all the same, so that reads of it are not allowed,
        and whoever would append to it finds it longer than it should be.
        """
        with self._lock:
            self._generation += 1
            self.present = 0
            self.durable = self.moved = self.reserved = False
            self.hosts = ()
            if not self._is_gone:
                os.truncate(self.path, 0)

    def go(self) -> None:
        """Its content is removed: from now on nothing is done to the file, for another may have its name."""
        with self._lock:
            self._is_gone = True

    def empty(self) -> None:
        """Its bytes have moved, and that is recorded: its own file holds them no longer. Raises OSError."""
        with self._lock:
            self.moved = True
            os.truncate(self.path, 0)

    def fingerprint(self) -> bytes:
        """xxh3-64 of the content's bytes, as they arrived. Only for a segment filled since this daemon started."""
        return self._hash.digest()

    @property
    def is_right(self) -> bool:
        """Of a complete one: whether its bytes are those of its known digest; True where none is known."""
        return self.digest is None or self._sha256.digest() == self.digest

    @property
    def is_other(self) -> bool:
        """Of a complete one: whether its bytes may be others than those that were evicted unverified, which somebody may have read."""
        return self.was is not None and self._sha256.digest() != self.was

    def _begin_sums(self) -> None:
        """There are none of a segment that nobody writes: most of a large model's are that for long."""
        self._hash = xxhash.xxh3_64()
        self._sha256 = hashlib.sha256()

    def _end_writing(self) -> None:
        with self._lock:
            self._writing = False


class Writer:
    """Appends to one segment from where it ends. Leaving the block gives the right back; the bytes stay."""

    def __init__(self, segment: Segment, descriptor: int, generation: int) -> None:
        self.segment = segment
        self.descriptor = descriptor
        self.generation = generation

    @property
    def remaining(self) -> int:
        """Bytes of content still missing."""
        return max(0, self.segment.length - self.segment.present)

    def append(self, buffer: memoryview) -> None:
        self.segment.append(self.descriptor, self.generation, buffer)

    def detach(self) -> int:
        """A descriptor of its own for whoever syncs: errors of writing back are told to the descriptor that wrote."""
        return os.dup(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self.segment._end_writing()  # noqa: SLF001 — two halves of one thing
