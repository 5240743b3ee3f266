"""Reads the probe's file for it, in a process of its own; each read in a child, since a mapped one may die of SIGBUS.

probe_reader.py FILE '[["read"|"map", offset, length], …]'   prints a JSON list of ok | zeros | wrong | short | EIO | SIGBUS | …
"""

import errno
import json
import mmap
import os
import signal
import sys

_MEGABYTE = 1 << 20


def _look(path: str, how: str, offset: int, length: int) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    if how == "map":
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
            got = mapped[offset : offset + length]
    else:
        try:
            got = os.pread(descriptor, length, offset)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "error")
    if len(got) < length:
        return "short"
    expected = bytes((offset + n) // _MEGABYTE + 1 for n in range(length))
    if got == expected:
        return "ok"
    return "zeros" if 0 in got else "wrong"


def _in_child(path: str, how: str, offset: int, length: int) -> str:
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, _look(path, how, offset, length).encode())
        os._exit(0)
    os.close(there)
    _, status = os.waitpid(child, 0)
    said = os.read(here, 64).decode()
    os.close(here)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said or "nothing"


if __name__ == "__main__":
    print(json.dumps([_in_child(sys.argv[1], *asked) for asked in json.loads(sys.argv[2])]))  # noqa: T201
