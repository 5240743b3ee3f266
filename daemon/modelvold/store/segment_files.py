"""The files of segments, a folder at a time: made with their contents, found again at a start. One name, one system call."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.linux.files import sync_folder
from modelvold.store.segment import file_name


@dataclass(frozen=True, slots=True)
class Found:
    """A segment's file: its inode number, its size in bytes."""

    inode: int
    size: int


def make(counts: Mapping[Path, int], top: Path) -> list[list[int]]:
    """Empty files for so many segments in each of these folders, which are new and lie below `top`. All are made, then all folders
    synced, those above them up to `top` as well: a journal has everything in its first commit.

    The files' inode numbers, folder by folder. Raises OSError; what was made by then is the caller's.
    """
    inodes = [_made(folder, count) for folder, count in counts.items()]
    for changed in dict.fromkeys(above for folder in counts for above in _up_to(top, folder)):
        sync_folder(changed)
    return inodes


def prune(folder: Path, top: Path) -> None:
    """Takes away the folders above `folder`, which is gone, up to `top`, as far as they are empty. Nobody makes one there meanwhile."""
    for above in _up_to(top, folder.parent):
        if above == top:
            break
        try:
            above.rmdir()
        except OSError:  # not empty
            break


def find(folder: Path, count: int) -> list[Found]:
    """The files of so many segments, made where they are missing. Raises OSError."""
    with _opened(folder) as descriptor:
        return [_found(descriptor, file_name(number)) for number in range(count)]


def _made(folder: Path, count: int) -> list[int]:
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:  # what a removal could not take away: no content has it
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
    names = [file_name(number) for number in range(count)]
    with _opened(folder) as descriptor:
        for name in names:
            _make(descriptor, name)
        with os.scandir(descriptor) as entries:  # tells the numbers of all: no file is looked at by itself
            inodes = {entry.name: entry.inode() for entry in entries}
    return [inodes[name] for name in names]


def _found(descriptor: int, name: str) -> Found:
    try:
        state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        _make(descriptor, name)
        state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    return Found(state.st_ino, state.st_size)


def _make(descriptor: int, name: str) -> None:
    os.mknod(name, stat.S_IFREG | 0o600, dir_fd=descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _up_to(top: Path, folder: Path) -> Iterator[Path]:
    while folder != top:
        yield folder
        folder = folder.parent
    yield top
