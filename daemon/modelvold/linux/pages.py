"""Pages of files in the page cache: which there are, and how they are made to go. One typed function a call, OSError and nothing
else; ranges are half-open, in bytes, and count whole pages.

ABI: `include/uapi/linux/mman.h` (struct cachestat, MADV_PAGEOUT), posix_fadvise(2), mincore(2), process_madvise(2). Calls go
through a CDLL, which drops the GIL.

A page is *cached* from the moment on at which a read of it begins, and *valid* once that has ended well: only then it has bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator

PAGE = mmap.PAGESIZE

_CACHESTAT, _PROCESS_MADVISE = 451, 440  # alike on all architectures
_MADV_PAGEOUT = 21
_PROT_NONE, _MAP_SHARED = 0, 1
_FAILED = ctypes.c_void_p(-1).value
#: mincore(2) answers with a byte a page, of which the lowest bit is defined.
_LOWEST_BIT = bytes(value & 1 for value in range(256))
_VALID = re.compile(b"\x01+")
_MOST_ASKED = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def let_go(descriptor: int, start: int, end: int) -> None:
    """posix_fadvise(POSIX_FADV_DONTNEED): clean pages that nobody maps, reads or holds just now go. A folio of several pages goes
    if all of it is in the range, so ask for more rather than less. Waits for no page."""
    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def cached(descriptor: int, start: int, end: int) -> int:
    """cachestat(2) (Linux 6.5): how many pages of the range are cached, valid or not. Waits for no page."""
    asked = (ctypes.c_uint64 * 2)(start, end - start)
    answer = (ctypes.c_uint64 * 5)()  # nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted
    _checked(_syscall(_CACHESTAT, descriptor, ctypes.byref(asked), ctypes.byref(answer), 0))
    return answer[0]


def valid(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """mincore(2): the ranges of [start, end) whose pages are valid. The range begins with a page and ends in the file.
    Maps the file without touching it: not for the process of a gate."""
    for at in range(start, end, _MOST_ASKED):
        for found in _VALID.finditer(_mincore(descriptor, at, min(_MOST_ASKED, end - at))):
            yield at + found.start() * PAGE, min(at + found.end() * PAGE, end)


def page_out(process: int, address: int, length: int) -> None:
    """process_madvise(MADV_PAGEOUT) (Linux 5.10): of these addresses of the process behind the pidfd, within one mapping, pages go
    that it alone maps, and once. EINVAL where they are locked in memory.

    Waits, and not even SIGKILL ends that, for a process of which one thread changes its mappings while another is in a page fault:
    not for the process of a gate."""
    end = address + length
    while address < end:  # one call takes 2 GiB at most, and says how much it took
        asked = (ctypes.c_uint64 * 2)(address, end - address)
        taken = _syscall(_PROCESS_MADVISE, process, ctypes.byref(asked), 1, _MADV_PAGEOUT, 0)
        _checked(taken)
        address += taken or length


def _mincore(descriptor: int, start: int, length: int) -> bytes:
    address = _libc.mmap(None, length, _PROT_NONE, _MAP_SHARED, descriptor, start)
    if address == _FAILED:
        raise _error()
    try:
        answer = ctypes.create_string_buffer(-(-length // PAGE))
        _checked(_libc.mincore(address, length, answer))
    finally:
        _libc.munmap(address, length)
    return answer.raw.translate(_LOWEST_BIT)


def _syscall(number: int, *arguments: object) -> int:
    """Numbers go as longs: the kernel reads a whole register."""
    result: int = _libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return result


def _checked(result: int) -> None:
    if result < 0:
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
