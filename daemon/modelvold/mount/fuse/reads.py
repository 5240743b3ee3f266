"""The life of a read: from the kernel's request to its answer, with as much waiting between as its bytes take.

    start ──all present──▶ answered
      │ ▲
 missing └──allowed── asked, in the table ──refused, late──▶ EIO
                                          ──reader killed──▶ EINTR

What may be read without asking is what the daemon has shown of a segment, and no more than its file holds: a file that is shorter than
that lost its bytes, and is asked about. A read that waits has no thread and no buffer; when it goes on it begins anew. Nothing is
answered in part: to the kernel a short read is the file's end.

While there is no daemon, what is shown is read, and what is missing waits for it, each read at most `deadline` seconds. While there is
one, how long is the daemon's to say.

A signal for a waiting reader is answered only if it kills: any other would turn the page fault that waits into SIGBUS. The kernel tells
of a reader's first signal alone; and of none where it reads past the page cache, though nothing but an answer ends such a reader. So these
are looked at again and again.

The lock guards the table of those who wait and whether there is a daemon; `_shown` is a dict of numbers, replaced and read whole. Nobody is
asked or answered under it.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Protocol, Self

from modelvold.errors import Failure, Malformed
from modelvold.linux import fuse
from modelvold.linux.fuse import Request
from modelvold.mount.causes import Causes
from modelvold.mount.fuse.files import Files, fill
from modelvold.mount.fuse.shelf import Shelf, nid_of, number_of

log = logging.getLogger(__name__)

#: Threads that go on with reads that were put aside, and with those of what is not in the page cache: each may wait for the disk.
WORKERS = 4
#: Seconds between two looks at who may have been killed. A look at one process takes 30 µs.
_ROUND = 0.25
#: Seconds for which reads of a segment that was waited for in vain get EIO at once: the kernel asks up to three times for one access.
_COOL_DOWN = 5.0
#: Seconds for which a signal is remembered whose read does not wait yet.
_REMEMBERED = 10.0
#: How often in its life a read may find less in a file than the daemon said, one time for each eviction that it meets.
_MOST_DISAPPOINTMENTS = 8
#: Of /proc/PID/status: the thread's own pending signals and its process's; what it blocks, ignores, and has a function for.
_PENDING, _HARMLESS = (b"SigPnd:", b"ShdPnd:"), (b"SigBlk:", b"SigIgn:", b"SigCgt:")
#: Signals that stop or do nothing where nobody minds them, as bits of those.
_MILD = sum(
    1 << number - 1
    for number in (
        signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    )
)  # fmt: skip


class Asker(Protocol):
    """The way to the daemon. Neither waits; what is lost is asked again on `connected`."""

    def ask(self, number: int, inode: int, need: int, pid: int) -> None:
        """Whether `need` bytes of the segment with this inode may be read, for the thread `pid`."""
        ...

    def withdraw(self, number: int) -> None:
        """Nobody waits for that answer any more."""
        ...


class Room:
    """A thread's own buffer: what is read is put together here."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(fuse.LARGEST_READ))


class Read:
    """`length` bytes from `offset` of the file `node`, none of them behind its end. `holds_pages`: the kernel keeps theirs locked until the
    answer.

    The rest is of its waiting: which question it asked of which segment, and since when.
    """

    __slots__ = (
        "came", "device", "disappointments", "holds_pages", "inode", "is_signalled", "length", "need", "node", "number", "offset", "pid",
        "unique",
    )  # fmt: skip

    def __init__(self, request: Request, offset: int, length: int, *, holds_pages: bool) -> None:
        self.device = request.device
        self.unique = request.unique
        self.pid = request.pid
        self.node = request.node
        self.offset = offset
        self.length = length
        self.holds_pages = holds_pages
        self.number = self.inode = self.need = self.disappointments = 0
        self.came = 0.0
        self.is_signalled = not holds_pages  # or may be, without our being told

    @property
    def question(self) -> tuple[int, int, int, int]:
        """Of `Asker.ask`."""
        return self.number, self.inode, self.need, self.pid


class Reads:
    """A `with` is the life of its threads. `deadline`, in seconds, may be set at any time."""

    def __init__(self, shelf: Shelf, files: Files, asker: Asker, *, deadline: float) -> None:
        self._shelf = shelf
        self._files = files
        self._asker = asker
        self.deadline = deadline
        self._causes = Causes()
        self._numbers = count(1)
        self._shown: dict[int, int] = {}  # by inode: bytes from its start
        self._lock = threading.Condition(threading.Lock())  # guards those below; `_clock` waits for it
        self._waiting: dict[int, Read] = {}  # by number, the first to come first
        self._signals: dict[int, float] = {}  # unique → when: signals for reads that do not wait (yet)
        self._is_signalled = False  # a signal came since the last look
        self._gone: float | None = time.monotonic()  # since when there is no daemon
        self._cooling: dict[int, float] = {}  # inode → until when its reads are denied while there is none
        self._is_ending = False
        self._going: SimpleQueue[tuple[Read, bool] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"fuse-read-{n}") for n in range(WORKERS)]
        self._threads.append(threading.Thread(target=self._clock, name="fuse-clock"))

    def __repr__(self) -> str:
        return f"<reads waiting={len(self._waiting)} daemon={self._gone is None}>"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Whoever waits gets EIO, and nothing is answered afterwards. May be called again."""
        with self._lock:
            if self._is_ending:
                return
            self._is_ending = True
            left, self._waiting = list(self._waiting.values()), {}
            self._lock.notify_all()
        for _ in range(WORKERS):
            self._going.put(None)
        for thread in self._threads:
            thread.join()
        for read in left:
            _refuse(read, errno.EIO)

    # -- from the kernel

    def start(self, read: Read, room: Room, *, may_wait: bool = False) -> None:
        """Answers it, or asks and puts it aside; one that would wait for the disk is left to another thread, unless it `may_wait`. Raises
        nothing."""
        try:
            missing = self._fill(read, room, 0 if may_wait else os.RWF_NOWAIT)
        except BlockingIOError:
            self._going.put((read, True))
            return
        except Exception as error:  # noqa: BLE001 — told there; whatever it is, the reader hears of it
            self._fail(read, error)
            return
        if missing is None:
            _answer(read, room.view[: read.length])
        else:
            self._put_aside(read, *missing)

    def interrupted(self, unique: int) -> None:
        """A signal came for the reader of that request."""
        with self._lock:
            for read in self._waiting.values():
                if read.unique == unique:
                    read.is_signalled = self._is_signalled = True
                    self._lock.notify_all()
                    return
            now = time.monotonic()
            self._signals = {number: when for number, when in self._signals.items() if when > now - _REMEMBERED}
            self._signals[unique] = now

    def free(self, node: int, start: int, end: int) -> list[tuple[int, int]]:
        """What of the bytes [start, end) of a file is in no page that a waiting read has locked: ranges in their order. The pages left out
        hold nothing yet."""
        with self._lock:
            held = sorted(
                (read.offset, -(-(read.offset + read.length) // fuse.PAGE) * fuse.PAGE)
                for read in self._waiting.values()
                if read.node == node and read.holds_pages
            )
        ranges: list[tuple[int, int]] = []
        for low, high in held:
            if low > start:
                ranges.append((start, min(low, end)))
            start = max(start, high)
            if start >= end:
                break
        if start < end:
            ranges.append((start, end))
        return ranges

    def waiting(self) -> int:
        """How many reads wait."""
        return len(self._waiting)

    # -- from the daemon

    def answered(self, number: int, allowed: bool, shown: int) -> None:
        """The read with this question goes on, or gets EIO; `shown` bytes of its segment may be read. A late one is no error."""
        with self._lock:
            read = self._waiting.pop(number, None)
        if read is None:
            return
        if allowed:
            self.shown([(read.inode, max(shown, self._shown.get(read.inode, 0)))])  # all of it, meanwhile
        self._going.put((read, allowed))

    def shown(self, pairs: Iterable[tuple[int, int]]) -> None:
        """By inode, how many bytes of each segment may be read without asking; 0: ask about all of it."""
        for inode, size in pairs:
            if size:
                self._shown[inode] = size
            else:
                self._shown.pop(inode, None)

    def connected(self) -> None:
        """There is a daemon: it is asked what everybody waits for, under new numbers."""
        with self._lock:
            self._gone = None
            self._cooling.clear()
            waiting, self._waiting = list(self._waiting.values()), {}
            for read in waiting:
                read.number = next(self._numbers)
                self._waiting[read.number] = read
            questions = [read.question for read in waiting]
        for question in questions:
            self._ask(question)

    def disconnected(self) -> None:
        """There is none: those who wait do so for `deadline` seconds from now."""
        with self._lock:
            if self._gone is None:
                self._gone = time.monotonic()
                self._lock.notify_all()

    # -- reading

    def _fill(self, read: Read, room: Room, flags: int) -> tuple[int, int] | None:
        """Puts the bytes into the room; or the segment's inode, and how many of its bytes are needed, where they are missing. `flags` are
        those of preadv2(2). Raises BlockingIOError where they keep it from waiting."""
        volume = self._shelf.hold(number_of(read.node))
        try:
            at = 0
            for extent in volume.image.extents(nid_of(read.node), read.offset, read.length):
                segment = self._files.borrow(volume, extent.device)
                try:
                    need = extent.offset + extent.length
                    if self._shown.get(segment.inode, 0) < need:
                        return segment.inode, need
                    if fill(segment, extent.offset, room.view[at : at + extent.length], flags) < extent.length:
                        if flags:
                            raise BlockingIOError(errno.EAGAIN, "not all of it is in the page cache, or in the file")
                        self._disappoint(read, segment.inode)
                        return segment.inode, need
                finally:
                    self._files.give_back(segment)
                at += extent.length
            if at != read.length:
                raise Malformed(f"volume {volume.name}: its image has {at} of {read.length} bytes of a file")
            return None
        finally:
            self._shelf.let_go(volume)

    def _disappoint(self, read: Read, inode: int) -> None:
        """Its file does not hold what it should. Raises OSError where that happens again and again."""
        self._shown.pop(inode, None)
        read.disappointments += 1
        if read.disappointments > _MOST_DISAPPOINTMENTS:
            raise OSError(errno.EIO, f"segment inode {inode} is shorter than what is said to be there")

    def _put_aside(self, read: Read, inode: int, need: int) -> None:
        with self._lock:
            is_cooling = self._gone is not None and time.monotonic() < self._cooling.get(inode, 0.0)
            is_denied = self._is_ending or is_cooling
            if not is_denied:
                read.number, read.inode, read.need = next(self._numbers), inode, need
                read.came = read.came or time.monotonic()
                self._waiting[read.number] = read
                if self._signals.pop(read.unique, None) is not None:
                    read.is_signalled = self._is_signalled = True
                if read.is_signalled or self._gone is not None:
                    self._lock.notify_all()
            question = read.question if self._gone is None else None
        if is_denied:
            _refuse(read, errno.EIO)
        elif question is not None:
            self._ask(question)

    def _ask(self, question: tuple[int, int, int, int]) -> None:
        try:
            self._asker.ask(*question)
        except OSError as error:  # the line is cut: it is asked again when there is another
            log.debug("ask daemon number=%d failed reason=%r", question[0], error.strerror)

    def _work(self) -> None:
        room = Room()
        while (going := self._going.get()) is not None:
            read, is_allowed = going
            if is_allowed:
                self.start(read, room, may_wait=True)
            else:
                _refuse(read, errno.EIO)

    def _fail(self, read: Read, error: Exception) -> None:
        """One line of what happened, and an error for the reader."""
        if isinstance(error, OSError | Failure):
            self._causes.tell("deny read", f"node {read.node:#x}: {error}", 1, 1)
        else:
            log.exception("deny read node=%#x offset=%d length=%d", read.node, read.offset, read.length)
        is_stale = isinstance(error, OSError) and error.errno == errno.ESTALE
        _refuse(read, errno.ESTALE if is_stale else errno.EIO)

    # -- time

    def _clock(self) -> None:
        """Answers those who are killed and those who are late."""
        looked = 0.0
        while True:
            signalled: list[Read] = []
            with self._lock:
                if not self._is_ending and not self._is_signalled:
                    self._lock.wait(self._patience())
                if self._is_ending:
                    return
                late = self._late()
                now = time.monotonic()
                if self._is_signalled or now >= looked + _ROUND:
                    looked, self._is_signalled = now, False
                    signalled = [read for read in self._waiting.values() if read.is_signalled]
            try:
                self._give_up(late)
                self._look(signalled)
            except Exception:  # nobody else would look
                log.exception("look at waiting reads failed")

    def _patience(self) -> float | None:
        """Under the lock. Seconds until somebody is to be looked at; None: until something happens."""
        rounds = [_ROUND] if any(read.is_signalled for read in self._waiting.values()) else []
        if self._gone is not None and self._waiting:
            nearest = min(max(read.came, self._gone) for read in self._waiting.values()) + self.deadline
            rounds.append(max(0.0, nearest - time.monotonic()))
        return min(rounds, default=None)

    def _late(self) -> list[Read]:
        """Under the lock. They are in the table no more."""
        if self._gone is None:
            return []
        last = time.monotonic() - self.deadline
        late = [read for read in self._waiting.values() if max(read.came, self._gone) <= last]
        for read in late:
            del self._waiting[read.number]
            self._cooling[read.inode] = time.monotonic() + _COOL_DOWN
        return late

    def _give_up(self, late: list[Read]) -> None:
        if late:
            segments = len(Counter(read.inode for read in late))
            self._causes.tell("deny reads", f"no daemon for {self.deadline:g} s", segments, len(late))
        for read in late:
            _refuse(read, errno.EIO)

    def _look(self, signalled: list[Read]) -> None:
        killed = {pid for pid in {read.pid for read in signalled} if _is_killed(pid)}
        for read in signalled:
            if read.pid in killed:
                self._call_off(read)

    def _call_off(self, read: Read) -> None:
        with self._lock:
            number = read.number
            is_waiting = self._waiting.pop(number, None) is read
        if is_waiting:
            _refuse(read, errno.EINTR)
            with suppress(OSError):
                self._asker.withdraw(number)


#: What answering says where nobody waits for the answer: the request was called off; the mount is gone.
_CALLED_OFF = frozenset({errno.ENOENT, errno.ENODEV})


def _answer(read: Read, view: memoryview) -> None:
    try:
        fuse.reply(read.device, read.unique, view)
    except OSError as error:
        if error.errno not in _CALLED_OFF:
            log.warning("answer read unique=%d failed reason=%r", read.unique, error.strerror)
            _refuse(read, errno.EIO)


def _refuse(read: Read, code: int) -> None:
    try:
        fuse.refuse(read.device, read.unique, code)
    except OSError as error:
        if error.errno not in _CALLED_OFF:
            log.warning("refuse read unique=%d failed reason=%r", read.unique, error.strerror)


def _is_killed(pid: int) -> bool:
    """Whether a signal is pending for the thread `pid` that ends it: SIGKILL, or one that it leaves to do what it does by default.
    False where it cannot be seen."""
    try:
        descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.read(descriptor, 1 << 14)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    pending, harmless = 0, _MILD
    for line in status.splitlines():
        if line.startswith(_PENDING):
            pending |= int(line.split()[1], 16)
        elif line.startswith(_HARMLESS):
            harmless |= int(line.split()[1], 16)
    return bool(pending & ~harmless)
