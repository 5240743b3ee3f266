"""Reading the files to pack: block by block, hashed by several threads, and never a file that changes meanwhile.

Rule: whoever has read a file to its end knows that it is the file that was found, byte for byte of its size and
unmodified; else Refused is raised, also in the middle of an upload.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from modelvold.errors import Refused
from modelvold.oci.digest import Digest
from modelvold.pack.walk import Found

#: Large enough that Python's part of reading, hashing and sending is small beside the kernel's and OpenSSL's;
#: small enough that even a slow uplink takes one within the time a send may last.
BLOCK = 256 << 10

_T = TypeVar("_T")
_R = TypeVar("_R")


class Stopped(Exception):
    """Another file failed, or the person gave up; what is under way ends at its next block."""


class Stop:
    """Set once, asked by every thread between two blocks; what blocks in between is ended by what `calls` was given."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()  # guards _ends, and that each is called
        self._ends: list[Callable[[], None]] = []

    def set(self) -> None:
        with self._lock:
            self._event.set()
            ends, self._ends = self._ends, []
        for end in ends:
            end()

    def calls(self, end: Callable[[], None]) -> None:
        """`end()` when it is set; at once if it was. From any thread, and it must not block."""
        with self._lock:
            if not self._event.is_set():
                self._ends.append(end)
                return
        end()

    def wait(self, seconds: float) -> None:
        """Raises Stopped as soon as it is set, returns after `seconds`."""
        if self._event.wait(seconds):
            raise Stopped

    def check(self) -> None:
        """Raises Stopped once set."""
        if self._event.is_set():
            raise Stopped


def blocks(found: Found, stop: Stop) -> Iterator[memoryview]:
    """The file's bytes. A block is valid until the next one is asked for. Raises Refused, Stopped."""
    try:
        with found.file.open("rb", buffering=0) as stream:
            buffer = bytearray(min(BLOCK, max(1, found.size + 1)))
            left = found.size
            _check_unchanged(found, os.fstat(stream.fileno()))
            while length := stream.readinto(buffer):
                stop.check()
                left -= length
                if left < 0:
                    raise _changed(found, "it grew")
                yield memoryview(buffer)[:length]
            if left:
                raise _changed(found, "it shrank")
            _check_unchanged(found, os.fstat(stream.fileno()))
    except OSError as error:
        raise Refused(f"{found.path!r}: {error.strerror}", "make it readable and pack again") from error


def digest_of(found: Found, stop: Stop, on_bytes: Callable[[int], None]) -> Digest:
    """The file's digest; `on_bytes` is told of every block's length. Raises as `blocks`."""
    sha256 = hashlib.sha256()
    for block in blocks(found, stop):
        sha256.update(block)
        on_bytes(len(block))
    return Digest(sha256.hexdigest())


def in_parallel(work: Callable[[_T], _R], items: Sequence[_T], threads: int, stop: Stop, name: str) -> list[_R]:
    """`work` on every item, results in the items' order. The first failure stops the rest and is raised."""
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _check_unchanged(found: Found, now: os.stat_result) -> None:
    if (now.st_dev, now.st_ino) != (found.device, found.inode):
        raise _changed(found, "another file has its name")
    if now.st_size != found.size or max(0, now.st_mtime_ns) != found.mtime:
        raise _changed(found, "it was written to")


def _changed(found: Found, how: str) -> Refused:
    return Refused(f"{found.path!r} changed while it was packed: {how}", "pack again when nothing writes to the folder")
