"""Who maps pieces of a volume's files, asked and paged out by a program of its own, which may hang where the daemon must not.

    daemon: Mapped().page_out(root, pieces) ──▶ python -m modelvold.mount.mapped: looks, pages out, looks ──▶ Found

A process that waits in a page fault of a volume can hold the lock of its address space: then reading its mappings may hang
(before Linux 6.17), and paging out does hang, beyond SIGKILL, until that fault ends, which is the gate's deadline. So the daemon
gives the program some seconds, takes what it has said by then, kills it and does not wait for its end. The program may map a
volume, for it is not the gate's process; it never touches what it maps.

Processes are found by device and inode, since those of containers have other paths for one file. A file below an overlay shows
the overlay's device: there the inode, with the path's end, must do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from modelvold.linux import pages
from modelvold.mount.pieces import Piece, let_go, merged, opened

log = logging.getLogger(__name__)

#: Seconds that the program looks, and how much longer it is waited for; bytes, and pieces, that it is given a second more for.
_LOOK, _PATIENCE, _BYTES, _PIECES = 5.0, 5.0, 1 << 30, 1000
#: Processes that are named. The rest is counted.
MOST_NAMED = 32
_WORKERS = 8
#: A page that another processor still has in hand is not paged out: it is tried once more.
_ROUNDS = 2
_OVERLAY = re.compile(rb"^\d+ \d+ (\d+):(\d+) .* - overlay ", re.MULTILINE)
#: Of an overlay that keeps file systems apart by the upper bits of inode numbers (xino), what is left of the inode's own.
_OWN_BITS = (1 << 32) - 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """`cached`: what is still cached of the pieces; `stale`: bytes of it that are valid, so that a read would give them.
    `processes`: `name (pid)` of those that map such, and, where there are such, of those that could not be looked at;
    `others` counts those beyond MOST_NAMED. `held`: whether a mount of it was seen."""

    cached: tuple[Piece, ...]
    stale: int
    processes: tuple[str, ...]
    others: int
    held: bool


class Mapped:
    def __init__(self) -> None:
        self._lingering: list[subprocess.Popen[str]] = []  # killed, and hanging in the kernel still

    def page_out(self, root: int, name: str, pieces: Sequence[Piece]) -> Found:
        """Makes the pages of `pieces` go that only one process maps. `root` is a descriptor of the volume's root, `name` its id.
        Raises OSError where the program said nothing."""
        self._lingering = [running for running in self._lingering if running.poll() is None]
        command = [sys.executable, "-P", "-m", "modelvold.mount.mapped"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe = subprocess.PIPE
        running = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=[root], env=environment, text=True
        )
        look = _LOOK + sum(piece.end - piece.start for piece in pieces) / _BYTES + len(pieces) / _PIECES
        asked = {"root": root, "name": name, "pieces": _flat(pieces), "look": look}
        try:
            said, complained = running.communicate(json.dumps(asked), look + _PATIENCE)
        except subprocess.TimeoutExpired as late:
            running.kill()
            self._lingering.append(running)
            said, complained = _text(late.stdout), _text(late.stderr)
        if complained:
            log.error("page out said=%r", complained[-2000:])
        line, is_whole, _ = said.partition("\n")
        if not is_whole:
            raise OSError(f"the program that pages out ended with {running.poll()} and said nothing")
        answer = json.loads(line)
        cached = tuple(Piece(*piece) for piece in answer["cached"])
        return Found(cached, answer["stale"], tuple(answer["processes"]), answer["others"], answer["held"])


def _text(output: bytes | str | None) -> str:
    """`TimeoutExpired` has bytes, whatever was asked for."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _flat(pieces: Sequence[Piece]) -> list[tuple[str, int, int]]:
    return [(piece.path, piece.start, piece.end) for piece in pieces]


# -- the program


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Mapping:
    """`piece` of a file, mapped at `address`."""

    address: int
    piece: Piece


def main() -> None:
    asked = json.load(sys.stdin)
    pieces = [Piece(*piece) for piece in asked["pieces"]]
    found = _Looking(asked["root"], asked["name"], pieces, asked["look"]).run()
    answer = {field.name: getattr(found, field.name) for field in fields(found)} | {"cached": _flat(found.cached)}
    print(json.dumps(answer), flush=True)  # noqa: T201 — it is a program, and this is its answer
    os._exit(0)  # threads that hang are not waited for


class _Looking:
    def __init__(self, root: int, name: str, pieces: Sequence[Piece], seconds: float) -> None:
        self._root = root
        self._name = os.fsencode(name)
        self._until = time.monotonic() + seconds
        self._pieces = pieces
        self._device = os.stat(root).st_dev
        self._files = {self._inode(path): _File(path, tuple(its)) for path, its in _by_path(pieces).items()}
        self._overlays: dict[str, list[bytes]] = {}  # by mount namespace
        self._is_held = False

    def run(self) -> Found:
        pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
        looked, silent = self._in_time(self._mappings, [pid for pid in pids if pid != os.getpid()])
        mappings = {pid: found for pid, found in looked.items() if found}
        left, stale = list(self._pieces), list(self._pieces)
        for _ in range(_ROUNDS):
            if stale:
                self._in_time(lambda pid: _page_out(pid, mappings[pid]), sorted(mappings))
                left = merged(let_go(self._root, left))
                stale = merged(self._valid(left))
        of_file = _by_path(stale)
        owners = [pid for pid, found in mappings.items() if _overlap(found, of_file)] + (silent if stale else [])
        named = [name for pid in sorted(owners) if (name := _named(pid))]
        count = sum(piece.end - piece.start for piece in stale)
        return Found(tuple(left), count, tuple(named[:MOST_NAMED]), len(named[MOST_NAMED:]), self._is_held)

    def _inode(self, path: str) -> int:
        return os.stat(path, dir_fd=self._root, follow_symlinks=False).st_ino

    def _in_time(self, work: Callable[[int], T], pids: Sequence[int]) -> tuple[dict[int, T], list[int]]:
        """The answers by pid, and those that gave none in time. Those that ended meanwhile are left out."""
        pool = ThreadPoolExecutor(_WORKERS)
        begun = {pool.submit(work, pid): pid for pid in pids}
        done, waiting = wait(begun, max(0.0, self._until - time.monotonic()))
        pool.shutdown(wait=False, cancel_futures=True)
        return {begun[f]: f.result() for f in done if not f.exception()}, [begun[f] for f in waiting]

    def _mappings(self, pid: int) -> list[_Mapping]:
        overlays = self._overlays_of(pid)
        devices = b"|".join([b"%02x:%02x" % (os.major(self._device), os.minor(self._device)), *overlays])
        line = re.compile(rb"^(\w+)-(\w+) \S+ (\w+) (" + devices + rb") (\d+) +(.*)$", re.MULTILINE)
        return [
            each
            for found in line.finditer(Path(f"/proc/{pid}/maps").read_bytes())
            for each in self._mapped(found, overlays)
        ]

    def _mapped(self, line: re.Match[bytes], overlays: Sequence[bytes]) -> Iterator[_Mapping]:
        start, end, offset = (int(number, 16) for number in line.group(1, 2, 3))
        is_overlay = line[4] in overlays
        self._is_held |= not is_overlay
        file = self._files.get(int(line[5]) & (_OWN_BITS if is_overlay else -1))
        if file is None or (is_overlay and not line[6].endswith(b"/" + os.fsencode(file.path))):
            return
        for piece in file.pieces:
            first, last = max(piece.start, offset), min(piece.end, offset + end - start)
            if first < last:
                yield _Mapping(start + first - offset, Piece(file.path, first, last))

    def _overlays_of(self, pid: int) -> list[bytes]:
        """Devices of the overlays that the process sees, as in its maps."""
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115
        if namespace not in self._overlays:
            mounts = Path(f"/proc/{pid}/mountinfo").read_bytes()
            self._overlays[namespace] = [
                b"%02x:%02x" % (int(major), int(minor)) for major, minor in _OVERLAY.findall(mounts)
            ]
            ours = b" %d:%d " % (os.major(self._device), os.minor(self._device))
            below = re.compile(rb" - overlay .*/" + re.escape(self._name) + rb"(?!\w)")
            self._is_held |= any(ours in line or below.search(line) for line in mounts.splitlines())
        return self._overlays[namespace]

    def _valid(self, pieces: Sequence[Piece]) -> Iterator[Piece]:
        """What of them a read would give."""
        for piece in pieces:
            with opened(self._root, piece.path) as file:
                for start, end in pages.valid(file, piece.start, piece.end):
                    yield Piece(piece.path, start, end)


def _by_path(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    found = defaultdict(list)
    for piece in pieces:
        found[piece.path].append(piece)
    return found


def _page_out(pid: int, mappings: Sequence[_Mapping]) -> None:
    with Path(f"/proc/{pid}/smaps").open("rb", 0) as smaps:
        smaps.read(1)  # takes the same lock, and hangs where paging out would; but SIGKILL ends it
    process = os.pidfd_open(pid)
    try:
        for mapping in mappings:
            with suppress(OSError):  # locked in memory, or unmapped meanwhile
                length = -(-(mapping.piece.end - mapping.piece.start) // pages.PAGE) * pages.PAGE
                pages.page_out(process, mapping.address, length)
    finally:
        os.close(process)


def _overlap(mappings: Sequence[_Mapping], stale: Mapping[str, Sequence[Piece]]) -> bool:
    """`stale` by path."""
    return any(
        mapping.piece.start < piece.end and piece.start < mapping.piece.end
        for mapping in mappings
        for piece in stale.get(mapping.piece.path, ())
    )


def _named(pid: int) -> str:
    """Empty where it has ended."""
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()} ({pid})"
    except OSError:
        return ""


if __name__ == "__main__":
    main()
