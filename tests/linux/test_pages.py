"""The page cache of ordinary files, asked and emptied."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.linux import pages
from modelvold.linux.pages import PAGE

from tests.lab.mapper import Mapper

root = pytest.mark.skipif(os.geteuid() != 0, reason="paging out of another process needs root")
SIZE = 64 * PAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Written, on disk, and in no cache."""
    made = tmp_path / "file"
    made.write_bytes(os.urandom(SIZE))
    return made


@pytest.fixture
def file(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDWR)
    os.fsync(opened)
    pages.let_go(opened, 0, SIZE)
    if pages.cached(opened, 0, SIZE):
        pytest.skip(f"{path.parent} is a file system in memory")
    yield opened
    os.close(opened)


def addresses(pid: int, path: Path) -> list[tuple[int, int]]:
    """Where a process maps a file: address and length."""
    lines = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith(str(path))]
    bounds = [[int(bound, 16) for bound in line.split()[0].split("-")] for line in lines]
    return [(start, end - start) for start, end in bounds]


def test_which_pages_are_cached_and_valid(file: int) -> None:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    assert pages.cached(file, 0, SIZE) == 0
    assert list(pages.valid(file, 0, SIZE)) == []
    os.pread(file, 2 * PAGE, 4 * PAGE)
    os.pread(file, 1, 9 * PAGE)
    assert pages.cached(file, 0, SIZE) == 3
    assert pages.cached(file, 5 * PAGE, 6 * PAGE) == 1
    assert list(pages.valid(file, 0, SIZE)) == [(4 * PAGE, 6 * PAGE), (9 * PAGE, 10 * PAGE)]
    assert list(pages.valid(file, 5 * PAGE, 9 * PAGE + 7)) == [(5 * PAGE, 6 * PAGE), (9 * PAGE, 9 * PAGE + 7)]


def test_pages_that_nobody_maps_go(file: int) -> None:
    os.pread(file, SIZE, 0)
    pages.let_go(file, 0, SIZE // 2)
    assert pages.cached(file, 0, SIZE // 2) == 0
    assert pages.cached(file, SIZE // 2, SIZE) > 0


@root
def test_pages_that_one_process_maps_go_from_it(file: int, path: Path) -> None:
    with Mapper(path) as mapper:
        before = mapper.read(0, SIZE)
        pages.let_go(file, 0, SIZE)
        assert pages.cached(file, 0, SIZE) == SIZE // PAGE
        process = os.pidfd_open(mapper.pid)
        ((address, length),) = addresses(mapper.pid, path)
        pages.page_out(process, address, length // 2)
        assert pages.cached(file, 0, SIZE) == SIZE // PAGE // 2
        mapper.tell("lock", 0, SIZE)
        with pytest.raises(OSError) as error:
            pages.page_out(process, address, length)
        assert error.value.errno == errno.EINVAL
        assert mapper.read(0, SIZE) == before
        os.close(process)


def test_a_range_longer_than_one_call_takes(tmp_path: Path) -> None:
    """Of 3 GiB that are mapped, the last page."""
    size = 3 << 30
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"x", size - 1)
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        assert mapped[size - 1] == ord("x")
        pages.let_go(file.fileno(), size - PAGE, size)
        assert pages.cached(file.fileno(), size - PAGE, size) == 1
        process = os.pidfd_open(os.getpid())
        held = ctypes.c_char.from_buffer(mapped)
        pages.page_out(process, ctypes.addressof(held), size)
        os.close(process)
        assert pages.cached(file.fileno(), size - PAGE, size) == 0
        del held
        mapped.close()
