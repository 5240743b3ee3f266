"""A volume of real segment files behind a real FUSE mount, served by threads of this process; the daemon is the test.

Mapped files are read by processes of their own: a page fault keeps Python's lock, and nobody here could answer it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from modelvold.layer.cut import cut
from modelvold.layer.extent import BLOCK, ContentOffset, padded
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.linux import fuse
from modelvold.mount.fuse.files import Files
from modelvold.mount.fuse.kernel import Kernel
from modelvold.mount.fuse.reads import Reads
from modelvold.mount.fuse.shelf import Shelf
from modelvold.mount.fuse.wire import ALL
from modelvold.store.segment import file_name
from modelvold.volume.erofs import write_image
from modelvold.volume.tree import merge

from tests.lab.check import settled
from tests.lab.program import wait_until

MIB = 1 << 20

#: Does what its arguments say, for each line a word: the digest of what was read, or the error's name.
_READER = """
import errno, hashlib, json, mmap, os, sys
path, how, pieces = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
flags = os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0)
file = os.open(path, flags)
if how == "random":
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ) if how == "mapped" else None
print("ready", flush=True)
for offset, length in pieces:
    try:
        if mapped is not None:
            got = mapped[offset:offset + length]
        elif how == "direct":
            room = mmap.mmap(-1, length)
            got = bytes(room[:os.preadv(file, [room], offset)])
        elif how == "sendfile":
            into = os.memfd_create("copy")
            left, at = length, offset
            while left:
                sent = os.sendfile(into, file, at, left)
                if not sent:
                    break
                left, at = left - sent, at + sent
            got = os.pread(into, length, 0)
        else:
            got = b""
            while len(got) < length:
                piece = os.pread(file, length - len(got), offset + len(got))
                if not piece:
                    break
                got += piece
        print(hashlib.sha256(got).hexdigest(), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


class Daemon:
    """`reads.Asker`: takes notes. The test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.withdrawn: list[int] = []

    def ask(self, number: int, inode: int, need: int, pid: int) -> None:
        self.asked.append((number, inode, need, pid))

    def withdraw(self, number: int) -> None:
        self.withdrawn.append(number)


@dataclass
class Store:
    """A volume's image, and its segments in one folder."""

    folder: Path
    content: bytes
    entries: Sequence[Entry]
    image: Path = field(init=False)
    segments: Path = field(init=False)

    def __post_init__(self) -> None:
        toc = Toc(tuple(self.entries), len(self.content))
        self.extents = cut(toc)
        self.folder.mkdir()
        self.image = self.folder / "image"
        self.image.write_bytes(write_image(merge([toc]), [self.extents]).bytes)
        self.segments = self.folder / "segments"
        self.segments.mkdir()
        for number in range(len(self.extents)):
            self.path(number).touch()

    def path(self, number: int) -> Path:
        return self.segments / file_name(number)

    def bytes_of(self, number: int) -> bytes:
        extent = self.extents[number]
        piece = self.content[extent.start : extent.end]
        return piece + bytes(padded(len(piece)) - len(piece))

    def fill(self, number: int, count: int | None = None) -> None:
        self.path(number).write_bytes(self.bytes_of(number)[:count])

    def fill_all(self) -> None:
        for number in range(len(self.extents)):
            self.fill(number)

    def inode(self, number: int) -> int:
        return self.path(number).stat().st_ino

    @property
    def where(self) -> list[tuple[Path, int]]:
        return [(self.segments, len(self.extents))]

    def of(self, entry: Entry, offset: int, length: int) -> bytes:
        return self.content[entry.offset + offset : entry.offset + min(offset + length, entry.size)]


def store_of(folder: Path, sizes: dict[str, int], more: Sequence[Entry] = ()) -> Store:
    """Files of random bytes one after the other, and what else there is."""
    entries, end = list[Entry](), 0
    for path, size in sizes.items():
        entries.append(Entry(path, size=size, offset=ContentOffset(end), mode=0o644, mtime=1_700_000_000_123456789))
        end += padded(size)
    return Store(folder, os.urandom(end), [*entries, *more])


@dataclass
class Scene:
    target: Path
    shelf: Shelf
    reads: Reads
    kernel: Kernel
    daemon: Daemon
    readers: list[subprocess.Popen[str]] = field(default_factory=list)

    def show(self, name: str, store: Store, *, filled: bool = True) -> None:
        if filled:
            store.fill_all()
            self.reads.shown((store.inode(number), ALL) for number in range(len(store.extents)))
        self.shelf.add(name, store.image, store.where)

    def read(self, path: str, *pieces: tuple[int, int], how: str = "plain") -> subprocess.Popen[str]:
        command = [sys.executable, "-I", "-S", "-c", _READER, str(self.target / path), how, json.dumps(pieces)]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.readers.append(reader)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        return reader

    def end_readers(self) -> None:
        for reader in self.readers:
            reader.kill()
            reader.communicate()

    def wait_for_reads(self, count: int) -> None:
        assert wait_until(lambda: self.reads.waiting() == count, 10), f"{self.reads.waiting()} reads wait"

    def allow(self, store: Store, number: int) -> None:
        """Whoever waits for that segment goes on."""
        inode = store.inode(number)
        for question, of, _, _ in list(self.daemon.asked):
            if of == inode:
                self.reads.answered(question, True, ALL)


def said(reader: subprocess.Popen[str]) -> list[str]:
    assert reader.stdout is not None
    output = reader.stdout.read()  # and not communicate(): some of it may have come with "ready"
    reader.wait(30)
    return output.split()


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


@contextmanager
def scene(folder: Path, *, deadline: float = 20.0, is_connected: bool = True) -> Iterator[Scene]:
    target = folder / "mount"
    target.mkdir()
    with settled(folder), ExitStack() as life:
        daemon, files = Daemon(), Files()
        shelf = Shelf(files)
        reads = life.enter_context(Reads(shelf, files, daemon, deadline=deadline))
        kernel = Kernel(fuse.mount_root(target), shelf, reads)
        loop = threading.Thread(target=kernel.run, name="loop")
        loop.start()
        made = Scene(target, shelf, reads, kernel, daemon)
        life.callback(loop.join)
        life.callback(_unmount, target)
        life.callback(made.end_readers)
        if is_connected:
            reads.connected()
        yield made


def _unmount(target: Path) -> None:
    with suppress(OSError):
        fuse.unmount_root(target, detach=True)


def folder_entry(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode=mode)


__all__ = ["BLOCK", "MIB", "Daemon", "Scene", "Store", "digest", "folder_entry", "said", "scene", "store_of"]
