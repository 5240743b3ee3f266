"""A program that maps a file and keeps what it has read of it mapped, until it ends: the one whose pages stay.

    with Mapper(path) as mapper:
        assert mapper.read(offset, length) == digest

It reads by itself, so that what it cannot have ends it with SIGBUS: then `read` is empty, and `ended_by` says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PROGRAM = """
import ctypes, hashlib, json, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
libc.mlock.argtypes = libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
file = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(file).st_size
maps = [libc.mmap(None, size, 1, 1, file, 0) for _ in range(2 if "twice" in sys.argv else 1)]
os.close(file)
if "huge" in sys.argv:
    assert libc.madvise(maps[0], size, 14) == 0  # MADV_HUGEPAGE
if "random" in sys.argv:
    assert libc.madvise(maps[0], size, 1) == 0  # MADV_RANDOM
print(flush=True)
for line in sys.stdin:
    what, offset, length = json.loads(line)
    said = ""
    if what == "read":
        copies = {hashlib.sha256(ctypes.string_at(address + offset, length)).hexdigest() for address in maps}
        said = copies.pop() if len(copies) == 1 else "two mappings differ"
    elif what == "lock":
        assert libc.mlock(maps[0] + offset, length) == 0
    elif what == "unlock":
        assert libc.munlock(maps[0] + offset, length) == 0
    elif what == "fork":  # so many children, which have a byte mapped, and end with us
        (come, ready), (wait, end) = os.pipe(), os.pipe()
        for _ in range(length):
            if not os.fork():
                os.close(end)
                os.write(ready, ctypes.string_at(maps[0] + offset, 1))
                os.read(wait, 1)
                os._exit(0)
        while length:
            length -= len(os.read(come, length))
    elif what == "fault":  # a thread reads; another one changes the mappings
        into = ctypes.create_string_buffer(length)
        threading.Thread(target=libc.memcpy, args=(into, maps[0] + offset, length), daemon=True).start()
    elif what == "map":
        threading.Thread(target=libc.mmap, args=(None, 1 << 20, 3, 0x22, -1, 0), daemon=True).start()
    print(said, flush=True)
"""


class Mapper:
    """`ways`: twice (maps it twice), huge (asks for huge pages), random (without read-ahead). `before`: words of the command that
    starts it."""

    def __init__(self, path: Path, *ways: str, before: Sequence[str] = ()) -> None:
        self._command = [*before, sys.executable, "-I", "-S", "-c", _PROGRAM, str(path), *ways]

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def name(self) -> str:
        return f"{Path(f'/proc/{self.pid}/comm').read_text().strip()} ({self.pid})"

    @property
    def ended_by(self) -> int:
        """The number of the signal."""
        return -self._running.wait(10)

    def read(self, offset: int, length: int) -> str:
        """The digest of what is mapped there."""
        return self.tell("read", offset, length)

    def tell(self, what: str, offset: int = 0, length: int = 0) -> str:
        self.begin(what, offset, length)
        return self.answer()

    def begin(self, what: str, offset: int = 0, length: int = 0) -> None:
        assert self._running.stdin is not None
        print(json.dumps([what, offset, length]), file=self._running.stdin, flush=True)

    def answer(self) -> str:
        assert self._running.stdout is not None
        return self._running.stdout.readline().strip()

    def end(self) -> None:
        self._running.kill()
        self._running.communicate()

    def __enter__(self) -> Self:
        self._running = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
