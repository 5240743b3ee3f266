"""The start-up probe: what this machine has been seen to do, in a scratch folder of the store (facts: never by version number).

A small volume is mounted for real: first as the `complete` backend would, then behind a gate. What fails is kept with
what was seen and with what would mend it, and ends the lines that build on it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelvold.errors import Failure
from modelvold.linux import mounts
from modelvold.mount import probe_fuse
from modelvold.mount import trial as trials
from modelvold.mount.findings import BINDS, COMPLETE, DIRECTORY, FUSE, LAZY, Findings, Line
from modelvold.mount.fuse import mounting
from modelvold.mount.gate import Gate
from modelvold.mount.lazy import Lazy
from modelvold.mount.questions import KernelQuestions
from modelvold.mount.trial import ACROSS, BEFORE, BEYOND, EMPTY, WAITING, Trial, mapped
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

_FILES = frozenset({DIRECTORY})
_EROFS = frozenset({LAZY, COMPLETE})
_GATE = frozenset({LAZY})
_KERNEL_EROFS = "root, and Linux 6.12 or later with EROFS on files (CONFIG_EROFS_FS_BACKED_BY_FILE)"
_KERNEL_SHORT_READS = "Linux 7.0, 6.18.44 or later, where a short read of a device file is an error"
_KERNEL_EVENTS = "root, and Linux 6.14 or later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
_FILE_SYSTEM = "a store on ext4, XFS or btrfs"
_KERNEL_WHOLE = "another kernel: this one lacks what the lazy backend rests on"


def probe(store: Path, run: Path, wanted: str = "") -> Findings:
    """Tries what the backends rest on, one after the other: it takes a few hundred milliseconds, and 4 MiB of the store's
    disk; leaves nothing behind. `wanted` is the backend that is set, or "auto": then FUSE is left out where it is not needed; all is
    tried without it. Raises OSError(ENOSPC) where the disk is full: what could not be tried must not count as not working."""
    with _scratch(store) as scratch, _points(run) as points:
        lines = list(_plain(scratch, points))
    with _scratch(store) as scratch, _points(run) as points:
        still = list(_still(scratch, points))
    lines += still
    if all(line.is_good for line in still):
        with _scratch(store) as scratch, _points(run) as points:
            lines += _gated(scratch, points)
    findings = Findings(tuple(lines))
    if wanted in {"", FUSE} or (wanted == "auto" and not findings.works(LAZY)):
        with _scratch(store) as scratch, _points(run) as points:
            lines.append(_fuse(scratch, points))
    for line in lines:
        log.debug("probe what=%r good=%s seen=%r", line.what, line.is_good, line.seen)
    return Findings(tuple(lines))


@contextmanager
def _scratch(store: Path) -> Iterator[Path]:
    """Locked for as long as it is in use: one that nobody has locked is what a daemon left that was killed meanwhile."""
    for folder in store.glob(".probe-*"):
        with suppress(OSError), _locked(folder):
            shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=store))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _points(run: Path) -> Iterator[Path]:
    """A folder for mount points; whatever is mounted below it at the end is taken away. So is what a daemon left that was killed."""
    for left in run.resolve().glob("probe-*"):
        with suppress(OSError), _locked(left):
            _take_away(left)
    folder = run.resolve() / f"probe-{os.getpid()}"  # as the kernel's table will name it
    folder.mkdir(parents=True)
    try:
        with _locked(folder):
            yield folder
    finally:
        _take_away(folder)


def _take_away(folder: Path) -> None:
    for entry in reversed(mounts.mountinfo()):
        point = Path(entry.mount_point)
        if folder in point.parents:
            mounting.unmount(point) if mounting.is_ours(entry) else mounts.unmount(point, detach=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError while another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _line(what: str, needed_by: frozenset[str], mend: str, attempt: Callable[[], str | None]) -> Line:
    """`attempt` gives what was wrong, or nothing; an OSError is what was wrong, but for a full disk."""
    try:
        seen = attempt() or ""
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        seen = error.strerror or str(error)
        if error.errno == errno.ENOTBLK:  # EROFS on files knows the files, but not their file system
            mend = _FILE_SYSTEM
    return Line(what, not seen, needed_by, seen, mend)


def _until_bad(lines: Iterator[Line]) -> Iterator[Line]:
    for line in lines:
        yield line
        if not line.is_good:
            return


def _plain(scratch: Path, points: Path) -> Iterator[Line]:
    def linked() -> None:
        (scratch / "a").touch()
        (scratch / "b").hardlink_to(scratch / "a")

    yield _line("hard links in the store", _FILES, "a store on a file system of Linux's own", linked)
    yield _line(BINDS, frozenset(), "root", lambda: mounts.bind_readonly(scratch, _made(points / "bind")))


def _fuse(scratch: Path, points: Path) -> Line:
    trial, point = Trial(_made(scratch / "fuse")), _made(points / "fuse")
    return _line("reads through FUSE", frozenset({FUSE}), probe_fuse.mend(), lambda: probe_fuse.look(trial, point))


def _still(scratch: Path, points: Path) -> Iterator[Line]:
    """EROFS over ordinary files that nobody fills."""
    trial = Trial(_made(scratch / "still"))
    target = _made(points / "still")

    def mounted() -> None:
        mounts.mount_erofs(trial.volume.image, [segment.path for segment in trial.content.segments], target)

    def steps() -> Iterator[Line]:
        yield _line("EROFS on files", _EROFS, _KERNEL_EROFS, mounted)
        yield _line(
            "read across two segments", _EROFS, _KERNEL_SHORT_READS, lambda: trials.look(target, [ACROSS], ["ok"])
        )
        looks = [BEYOND, mapped(BEYOND), BEYOND, EMPTY, BEFORE]
        yield _line(
            "no zeros beyond a segment's end",
            _EROFS,
            _KERNEL_SHORT_READS,
            lambda: trials.look(target, looks, ["EIO", "SIGBUS", "EIO", "EIO", "ok"]),
        )

    yield from _until_bad(steps())


def _gated(scratch: Path, points: Path) -> Iterator[Line]:
    """EROFS behind a gate; the same mount with the gate gone, and with another one."""
    scene = _Gated(scratch / "gated", points / "gated")
    try:
        yield from _until_bad(scene.lines())
    finally:
        scene.close()


class _Gated:
    """The probe is its own bringer of bytes (mount.port.Bytes)."""

    def __init__(self, scratch: Path, points: Path) -> None:
        self._trial = Trial(_made(scratch))
        self._contents = scratch / "content"
        self._door = points / "store"
        self._target = _made(points / "volume")
        self._gate: Gate | None = None
        self._kernel = KernelQuestions()
        self._note = ""

    def demand(self, segment: Segment) -> None:
        gate = self._gate
        if gate is None or segment is self._trial.waiting:
            return
        if segment is self._trial.empty:
            gate.on_failed([segment], Failure("probe: left missing on purpose"))
        else:
            trials.fill(segment, segment.length)
            gate.on_grown(segment)

    def release(self, segment: Segment) -> None:
        pass

    def lines(self) -> Iterator[Line]:
        yield _line("fanotify pre-content events", _GATE, _KERNEL_EVENTS, self._open_gate)
        yield _line("pre-content events of the store's file system", _GATE, _FILE_SYSTEM, self._mount)
        yield self._see("a denied read is an error", [EMPTY, mapped(EMPTY)], ["EIO", "SIGBUS"])
        yield _line("a killed reader leaves no zeros", _GATE, _KERNEL_SHORT_READS, self._kill_a_reader)
        self._close_gate()
        yield self._see("missing bytes without a gate are errors", [BEYOND, mapped(BEYOND)], ["EIO", "SIGBUS"])
        yield _line("a new gate on the same mount", _GATE, _KERNEL_WHOLE, self._open_again)
        yield self._see("missing bytes are asked for", [BEYOND, mapped(BEYOND)], ["ok", "ok"])

    def close(self) -> None:
        """Mounts first, then the gate: nothing is asked that nobody answers."""
        for point in (self._target, self._door):
            with suppress(OSError):
                mounts.unmount(point, detach=True)
        self._close_gate()

    def _open_gate(self) -> None:
        gate = Gate(self, self._kernel, deadline=5)
        gate.__enter__()
        self._gate = gate

    def _close_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate:
            gate.__exit__(None, None, None)

    def _backend(self) -> Lazy:
        assert self._gate  # noqa: S101 — the line before opened it
        return Lazy(self._gate, self._kernel, self._contents, self._door)

    def _mount(self) -> None:
        backend = self._backend()
        backend.serve([])
        self._note = backend.mount(self._trial.volume, self._target)

    def _open_again(self) -> None:
        self._open_gate()
        self._backend().serve([(self._trial.volume, self._note)])

    def _kill_a_reader(self) -> str:
        gate, segment = self._gate, self._trial.waiting
        assert gate  # noqa: S101
        reader = trials.start(self._target, [WAITING])
        until = time.monotonic() + 5
        while not (waiting := gate.waiting([segment])) and time.monotonic() < until:
            time.sleep(0.005)
        trials.kill(reader)
        if not waiting:
            return "no read of missing bytes was asked about"
        trials.fill(segment, segment.length)
        gate.on_grown(segment)
        return trials.look(self._target, [WAITING, mapped(WAITING)], ["ok", "ok"])

    def _see(self, what: str, looks: list[trials.Look], expected: list[str]) -> Line:
        return _line(what, _GATE, _KERNEL_WHOLE, lambda: trials.look(self._target, looks, expected))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
