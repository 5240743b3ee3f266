"""One segment: one file that only grows by appending, and is only ever truncated to zero (rule 3).

    missing ──append…──▶ present ──sync──▶ durable (recorded) ──copy, sync, record──▶ moved
       ▲                                      │                                          │
       └───────────── truncate ◀── unrecord ──┴──────────────────────────────────────────┘

The bytes of a moved one lie in the content's whole files (`store.whole`), and its own is empty: it counts as present.

One `Writer` at a time. Check of the size, append and truncate exclude each other under the segment's lock, the one lock of the
house that is held over I/O: a late buffer must never land behind a truncation, or the hole would be read as zeros.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import xxhash

from modelvold.errors import Failing, Failure, Refused
from modelvold.layer.extent import Extent, padded


class Segment:
    """`extent` is its place in the content; `present` counts the bytes in the file, padding included once it is complete, and
    goes on counting them when they are `moved`."""

    __slots__ = (
        "_generation",
        "_hash",
        "_lock",
        "_writing",
        "durable",
        "extent",
        "failure",
        "folder",
        "inode",
        "moved",
        "number",
        "owner",
        "present",
    )

    def __init__(self, folder: Callable[[], Path], number: int, extent: Extent, owner: object) -> None:
        self.folder = folder
        self.number = number
        self.extent = extent
        self.owner = owner  # the content; typed where it is made
        self.present = 0
        self.durable = False
        self.moved = False
        self.inode = 0
        self.failure: Failure | None = None  # why the last try to fetch it ended; None once bytes flow again
        self._generation = 0
        self._hash = xxhash.xxh3_64()  # over the bytes as they came; finds rot later, not malice
        self._writing = False
        self._lock = threading.Lock()  # guards the file's size, _generation and _writing

    def __repr__(self) -> str:
        state = "moved" if self.moved else "durable" if self.durable else f"{self.present}/{self.padded}"
        return f"<segment {self.folder().name}/{self.number} {state}>"

    @property
    def path(self) -> Path:
        return self.folder() / f"{self.number:05d}"

    @property
    def length(self) -> int:
        """Bytes of content, without padding."""
        return self.extent.length

    @property
    def padded(self) -> int:
        return padded(self.extent.length)

    @property
    def is_complete(self) -> bool:
        return self.present == self.padded

    @property
    def filled(self) -> int:
        """Bytes of content present."""
        return min(self.present, self.length)

    def writer(self) -> Writer:
        """The right to append, for one `with` block. Raises Refused while another holds it."""
        with self._lock:
            if self._writing:
                raise Refused(f"segment {self.path}: another transfer writes it")
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            self._writing = True
            return Writer(self, descriptor, self._generation)

    def append(self, descriptor: int, generation: int, buffer: memoryview) -> int:
        """Appends all of `buffer` and, behind the last byte of content, the padding. Returns the new size.

        Raises Refused when the segment was truncated since the writer came, Failing when the file is not as long as we left it.
        """
        with self._lock:
            if generation != self._generation:
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
                buffer, padding = buffer[from_buffer:], padding[written - from_buffer :]
            return self.present

    def truncate(self) -> None:
        """Back to missing. The caller has removed its record, synced, had events raised again and waited for reads under way.

        Raises OSError when the file cannot be truncated: it counts as missing all the same, so that reads of it are not allowed,
        and whoever would append to it finds it longer than it should be.
        """
        with self._lock:
            self._generation += 1
            self._hash = xxhash.xxh3_64()
            self.present = 0
            self.durable = False
            self.moved = False
            os.truncate(self.path, 0)

    def empty(self) -> None:
        """Its bytes have moved, and that is recorded: its own file holds them no longer. Raises OSError."""
        with self._lock:
            self.moved = True
            os.truncate(self.path, 0)

    def fingerprint(self) -> bytes:
        """xxh3-64 of the content's bytes, as they arrived. Only for a segment filled since this daemon started."""
        return self._hash.digest()

    def _end_writing(self) -> None:
        with self._lock:
            self._writing = False


class Writer:
    """Appends to one segment from where it ends. Leaving the block gives the right back; the bytes stay."""

    def __init__(self, segment: Segment, descriptor: int, generation: int) -> None:
        self.segment = segment
        self.descriptor = descriptor
        self._generation = generation

    @property
    def remaining(self) -> int:
        """Bytes of content still missing."""
        return max(0, self.segment.length - self.segment.present)

    def append(self, buffer: memoryview) -> None:
        self.segment.append(self.descriptor, self._generation, buffer)

    def detach(self) -> int:
        """A descriptor of its own for whoever syncs: errors of writing back are told to the descriptor that wrote."""
        return os.dup(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self.segment._end_writing()  # noqa: SLF001 — two halves of one thing
