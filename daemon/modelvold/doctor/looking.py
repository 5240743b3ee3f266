"""Looks at this machine: /proc, the store's folder, and the probe. Changes nothing and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelvold.doctor.privileges import CAP_SYS_PTRACE, can
from modelvold.doctor.store import Place, holder
from modelvold.doctor.watchers import Watcher
from modelvold.errors import Failure
from modelvold.linux.filesystem import FileSystem, filesystem_of
from modelvold.mount.findings import Findings
from modelvold.mount.probe import probe

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Trial:
    """What the probe found in `folder`; None, and `trouble`, where it could not be made."""

    folder: Path
    findings: Findings | None
    trouble: str = ""


def text_of(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def place(root: Path) -> Place:
    nearest = _nearest(root)
    found = filesystem_of(nearest)
    total, free = _room(nearest)
    return Place(
        root=root,
        nearest=nearest,
        is_folder=_is_folder(nearest),
        is_writable=_is_writable(nearest),
        fs_type=found.type if found else "unknown",
        disk=found.disk if found else "",
        has_journal=found is not None and found.has_journal,
        total=total,
        free=free,
        holder=_holder(root, found),
    )


def trial(place: Place, run: Path) -> Trial:
    """The probe, in the store or as near to it as can be; in the folder for temporary files where nothing there can be written."""
    spare = Path(tempfile.gettempdir())
    folder, point = (
        each if _is_folder(each) and _is_writable(each) else spare for each in (place.nearest, _nearest(run.resolve()))
    )
    try:
        with _undisturbed():
            return Trial(folder, probe(folder, point))
    except OSError as error:
        return Trial(folder, None, f"{error.filename or folder}: {error.strerror or error}")
    except Failure as failure:
        return Trial(folder, None, str(failure))


def watchers() -> tuple[list[Watcher], bool]:
    """Every process with fanotify groups but ourselves, and whether all processes could be looked at."""
    found, is_all = [], True
    may_see_all = can(CAP_SYS_PTRACE, text_of(_PROC / "self/status"))
    for pid in sorted(int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()):
        try:
            groups = _groups(pid)
        except PermissionError:
            is_all = is_all and may_see_all  # where we may, it is one that is ending
        except OSError:  # it has ended meanwhile
            continue
        else:
            if groups and pid != os.getpid():
                found.append(Watcher(pid, text_of(_PROC / str(pid) / "comm").strip() or "?", groups))
    return found, is_all


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever wants to end us waits: the probe takes a moment, and cut short it could leave a mount behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nearest(path: Path) -> Path:
    """It, or the lowest above it that is there; os.path, since a folder that may not be entered counts as not there."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 — which answers where it may not look, too


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _room(folder: Path) -> tuple[int, int]:
    """In bytes, all of it and what is free; (0, 0) where the file system does not say."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return 0, 0
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize


def _holder(root: Path, found: FileSystem | None) -> int:
    try:
        inode = (root / "lock").stat().st_ino
    except OSError:
        return 0
    return holder(text_of(_PROC / "locks"), found.device, inode) if found else 0


def _groups(pid: int) -> tuple[str, ...]:
    """Only links and fdinfo are read, neither of which can hang while the process waits in a page fault. Raises OSError."""
    folder = _PROC / str(pid)
    found = []
    for number in os.listdir(folder / "fd"):  # noqa: PTH208
        with suppress(FileNotFoundError):
            if os.readlink(folder / "fd" / number) == "anon_inode:[fanotify]":  # noqa: PTH115
                found.append(text_of(folder / "fdinfo" / number))
    return tuple(found)
