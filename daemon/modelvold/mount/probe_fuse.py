"""The probe's FUSE: a mount of its own, served by a thread of this very process for as long as it takes to look.

Looks are child processes, as everywhere in the probe: whoever serves a mount must not read it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelvold.linux import fuse
from modelvold.mount import trial as trials
from modelvold.mount.fuse import mounting
from modelvold.mount.fuse.files import Files
from modelvold.mount.fuse.kernel import Kernel
from modelvold.mount.fuse.reads import Reads
from modelvold.mount.fuse.shelf import Shelf
from modelvold.mount.fuse.wire import ALL
from modelvold.mount.trial import ACROSS, BEFORE, BEYOND, EMPTY, Trial, mapped

_NAME = "probe"
_DEADLINE = 5.0


def look(trial: Trial, point: Path) -> str:
    """What was seen that should not be, of a volume with present, short and empty segments; empty where all is right. `point` is an
    empty folder. Raises OSError where there is no FUSE."""
    with _served(trial, point):
        looks = [ACROSS, BEFORE, BEYOND, mapped(BEYOND), EMPTY]
        return trials.look(point / _NAME, looks, ["ok", "ok", "EIO", "SIGBUS", "EIO"])


def mend() -> str:
    """What of it this machine lacks; where it seems to have it all, what may keep that from working."""
    is_root = os.geteuid() == 0
    if not os.path.lexists(fuse.DEVICE):
        return f"{fuse.DEVICE}: `modprobe fuse`; in a container, that device"
    if is_root:
        return "root that may mount, and Linux 5.4 or later"
    if shutil.which(fuse.HELPER) is None:
        return f"{fuse.HELPER}, from the package fuse3"
    if not os.access(fuse.DEVICE, os.R_OK | os.W_OK):
        return f"{fuse.DEVICE} open to everybody, as udev has it: `chmod 666 {fuse.DEVICE}`"
    return f"{fuse.HELPER} with the setuid bit of the package fuse3, not switched off by `nosuid` or `NoNewPrivileges`; Linux 5.4 or later"


class _Denying:
    """Stands for a daemon that brings nothing."""

    reads: Reads

    def withdraw(self, number: int) -> None:
        """It has had its answer."""

    def ask(self, number: int, inode: int, need: int, pid: int) -> None:
        self.reads.answered(number, False, 0)


@contextmanager
def _served(trial: Trial, point: Path) -> Iterator[None]:
    asker = _Denying()
    files = Files()
    shelf = Shelf(files)
    asker.reads = reads = Reads(shelf, files, asker, deadline=_DEADLINE)
    device = mounting.mount(point)
    with reads:
        kernel = threading.Thread(target=Kernel(device, shelf, reads).run, name="probe-fuse")
        kernel.start()
        try:
            shelf.add(_NAME, trial.volume.image, [(trial.content.folder(), len(trial.content.segments))])
            reads.shown((segment.inode, ALL) for segment in trial.content.segments)
            reads.connected()
            yield
        finally:
            with suppress(OSError):
                mounting.unmount(point)
            kernel.join()
