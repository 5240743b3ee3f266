"""Disks that lose their power: ext4 on an image file that lies on XFS, cut by one reflink copy while everything runs.

    with Disk(folder) as disk:
        Store(disk.path / "store")          # and whatever else writes
        cut = disk.cut()                    # at any moment, by any process that may read `disk.image`
        with disk.after(cut) as path:       # mounted, the journal replayed: as the machine finds it when it comes up again
            Store(path / "store")

    <folder>/below.img         XFS, on a loop device
    <folder>/below/disk        ext4, on a loop device
    <folder>/below/<n>.cut     what the disk had at one moment
    <folder>/disk              where the ext4 is mounted
    <folder>/after             where a cut is mounted

A cut is what the file systems above had written to the disk by then, in the order in which they wrote it; what lay in page caches is
lost. FICLONE holds the image's lock against the loop device's writes, so a cut is one moment (an ordinary copy would mix many,
and show states that no disk can have). What it does not show is a device that loses writes it acknowledged and was never asked to flush:
that takes a device mapper, which not every kernel has. Never to be tried on ext4 without a journal.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import debian
from tests.lab.mounts import unmount_below

#: ioctl_ficlonerange(2): the whole of one file.
_FICLONE = 0x40049409
#: mkfs.xfs makes none below 300 MiB. Sparse, so it takes what is written, and what is discarded is given back.
_BELOW = 4 << 30


def reflink(source: Path, target: Path) -> None:
    """`target`, new, shares every block of `source` as it is at this moment. Raises OSError."""
    with source.open("rb") as read, target.open("xb") as write:
        fcntl.ioctl(write, _FICLONE, read.fileno())


class Disk:
    """Needs root, loop devices and XFS; `missing()` says what is not here. Leaving unmounts all of it, which frees the devices."""

    def __init__(self, folder: Path, size: int = 1 << 30) -> None:
        self.path = folder / "disk"
        self.image = folder / "below/disk"
        self._folder = folder
        self._size = size
        self._numbers = count(1)
        self._life = ExitStack()

    def cut(self) -> Path:
        """The power goes, for the copy alone."""
        target = self.image.with_name(f"{next(self._numbers)}.cut")
        reflink(self.image, target)
        return target

    @contextmanager
    def after(self, cut: Path) -> Iterator[Path]:
        """Where the cut is mounted. It is gone afterwards."""
        at = self._folder / "after"
        at.mkdir(exist_ok=True)
        _run("mount", "-t", "ext4", "-o", "loop", cut, at)
        try:
            yield at
        finally:
            _take_away(at)
            cut.unlink()

    def __enter__(self) -> Self:
        with ExitStack() as life:
            life.callback(unmount_below, self._folder)  # after a failure; detached loop devices free themselves
            below = self._folder / "below.img"
            _sparse(below, _BELOW)
            life.callback(below.unlink)
            _run(*debian.mkfs_xfs(), "-q", "-K", "-m", "reflink=1", below)
            self.image.parent.mkdir()
            _run("mount", "-t", "xfs", "-o", "loop,discard", below, self.image.parent)
            life.callback(_take_away, self.image.parent)
            _sparse(self.image, self._size)
            _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
            self.path.mkdir()
            _run("mount", "-t", "ext4", "-o", "loop", self.image, self.path)
            life.callback(_take_away, self.path)
            self._life = life.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()


def missing() -> str:
    """What keeps a Disk from being made here, in one line; empty if nothing seen does."""
    if os.geteuid() != 0:
        return "not root: loop devices and mounts need it"
    if not Path("/dev/loop-control").exists():
        return "no loop devices (/dev/loop-control)"
    known = Path("/proc/filesystems").read_text()
    if (
        "\txfs\n" not in known
        and subprocess.run(["modprobe", "-q", "xfs"], check=False, capture_output=True).returncode
    ):
        return "the kernel has no XFS"
    try:
        debian.mkfs_xfs()
    except debian.Unavailable as reason:
        return str(reason)
    return ""


def _sparse(path: Path, size: int) -> None:
    with path.open("xb") as file:
        file.truncate(size)


def _take_away(at: Path) -> None:
    """Raises AssertionError where somebody still has a file of it open."""
    _run("umount", at)


def _run(*command: str | Path) -> None:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}: {ran.stderr.strip()}"
