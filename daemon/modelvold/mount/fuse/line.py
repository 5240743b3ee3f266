"""The daemon's way to the process that serves FUSE, whichever that is: found where a former daemon left it, started, started again.

A process outlives its daemon, and a daemon its process. One that does not answer is killed: a mount that is dead says so to its
readers, one that hangs does not. One that speaks another version, of a modelvold before, is left to its readers: its mount is taken
off its place, and goes with the last of them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelvold.mount.fuse import mounting
from modelvold.mount.fuse.link import Link
from modelvold.mount.fuse.questions import FuseQuestions
from modelvold.mount.fuse.wire import VERSION, Welcome

log = logging.getLogger(__name__)

MOUNT, SOCKET = "fuse", "fuse.sock"
#: Seconds for a process to start and mount, and to take a connection.
_PATIENCE_TO_START, _PATIENCE = 20.0, 10.0
#: Seconds between two looks whether it has come so far, and between two tries to have one again.
_GLANCE, _PAUSE = 0.02, 1.0
#: Seconds between two looks whether it is alive, and after which one that does not answer is killed: its readers wait for ever, and with
#: a dead mount they are at least told. Long, for a machine that swaps.
_LOOK, _HANGS = 10.0, 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where it all is, in the run folder `run`; `label` as of `mount.erofs.Complete`, `log` the daemon's level and format."""

    run: Path
    label: str = ""
    log: tuple[str, str] = ("info", "text")

    @property
    def mount(self) -> Path:
        return self.run / MOUNT

    @property
    def socket(self) -> Path:
        return self.run / SOCKET

    def clear(self) -> None:
        """Nothing is mounted there any more, and nobody listens."""
        self.socket.unlink(missing_ok=True)
        with suppress(OSError):  # it was never made, or what is mounted there could not be taken away
            self.mount.rmdir()


class Line:
    """`questions` have each link while it lasts. `deadline`: seconds that a read waits while there is no daemon.

    `on_parted` is told that a link has ended; `on_again` that there is one again, with whether its process is another one: what it has to
    know is to be told it. Where that raises OSError, all is tried again. Both by threads of ours.
    """

    def __init__(
        self,
        place: Place,
        questions: FuseQuestions,
        *,
        deadline: float,
        on_parted: Callable[[], None],
        on_again: Callable[[Welcome, bool], None],
    ) -> None:
        self.place = place
        self._questions = questions
        self._deadline = deadline
        self._on_parted = on_parted
        self._on_again = on_again
        self._lock = threading.Lock()  # guards _link and _process
        self._link: Link | None = None
        self._process: subprocess.Popen[bytes] | None = None  # where it is our child
        self._closing = threading.Event()
        self._revival: threading.Thread | None = None
        self._watch = threading.Thread(target=self._look, name="fuse-watch")
        #: Of the mount that is served now, `major:minor`.
        self.device = ""

    @property
    def link(self) -> Link:
        """Raises OSError while there is no process."""
        link = self._link
        if link is None:
            raise OSError(errno.ENOTCONN, "the process that serves FUSE has ended, and is started again")
        return link

    def attach(self) -> Welcome:
        """Once: to the process that a former daemon left, else to a new one. Raises OSError."""
        welcome = self._attach()
        self._watch.start()
        return welcome

    def close(self, *, is_left: bool) -> None:
        """`is_left`: the process stays, since it shows something; else its mount goes, and it ends."""
        self._closing.set()
        self._part()
        for thread in (self._watch, self._revival):
            if thread is not None and thread.ident is not None:
                thread.join()
        self._part()  # from what the revival may have come to meanwhile
        if not is_left:
            mounting.take_away(self.place.mount)
            self._reap()
            self.place.clear()

    def _attach(self) -> Welcome:
        return self._join_old() or self._join_new()

    def _join_old(self) -> Welcome | None:
        if not self.place.socket.exists():
            return None
        try:
            link, welcome = self._greet()
        except OSError as error:
            log.warning("no process that serves FUSE reason=%r", error.strerror or str(error))
            mounting.abort(self.place.mount)
            return None
        if welcome.version != VERSION or welcome.device != mounting.device_at(self.place.mount):
            log.warning("leave process=%d reason='of another version, or its mount is lost'", link.pid)
            link.close()
            return None
        self._join(link, welcome)
        log.info("adopt process=%d volumes=%d", link.pid, len(welcome.volumes))
        return welcome

    def _join_new(self) -> Welcome:
        mounting.take_away(self.place.mount)
        self.place.mount.mkdir(parents=True, exist_ok=True, mode=0o755)
        process = _started(self.place)
        link, welcome = self._greet()
        with self._lock:
            self._process = process
        self._join(link, welcome)
        log.info("start process=%d device=%s", link.pid, welcome.device)
        return welcome

    def _greet(self) -> tuple[Link, Welcome]:
        link = Link(_connected(self.place.socket), self._questions.on_ask, self._questions.on_withdraw, self._on_end)
        try:
            return link, link.greet(self._deadline)
        except OSError as error:
            if isinstance(error, TimeoutError):
                kill(link.pid)
            link.close()
            raise

    def _join(self, link: Link, welcome: Welcome) -> None:
        """Raises OSError where it has ended already: nobody would hear of that."""
        with self._lock:
            if link.has_ended:
                raise ConnectionResetError(errno.ECONNRESET, "the process that serves FUSE has ended")
            self._link, self.device = link, welcome.device
        self._questions.join(link)

    def _part(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        self._questions.part()
        if link is not None:
            link.close()

    def _on_end(self, ended: Link) -> None:
        """The connection has ended: the process has died, or hangs, or we close it."""
        with self._lock:
            if ended is not self._link:
                return
            self._link = None
        self._questions.part()
        self._on_parted()
        if not self._closing.is_set():
            log.error("lost process=%d", ended.pid)
            self._revival = threading.Thread(target=self._revive, args=(ended.pid,), name="fuse-revive")
            self._revival.start()

    def _revive(self, former: int) -> None:
        """Until there is a process again, and all that it has to know is told. `former` is the last one's pid."""
        while not self._closing.is_set():
            try:
                self._reap()
                welcome = self._attach()
                self._on_again(welcome, welcome.pid != former)
            except OSError as error:
                log.error("no process that serves FUSE reason=%r", error.strerror or str(error))  # noqa: TRY400 — told, and tried again
                self._closing.wait(_PAUSE)
            else:
                return

    def _look(self) -> None:
        """Whether the process is alive."""
        while not self._closing.wait(_LOOK):
            if link := self._link:
                try:
                    link.ping(_HANGS)
                except TimeoutError:
                    kill(link.pid)
                except OSError:  # it has ended, and is started again
                    pass

    def _reap(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)


def kill(pid: int) -> None:
    """One that hangs. Its mount is dead then."""
    log.error("kill process=%d reason='it serves FUSE and does not answer'", pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def retire(run: Path) -> None:
    """Another backend is used: a process that a former daemon left goes with its last reader."""
    place = Place(run)
    if mounting.device_at(place.mount):
        log.warning("leave fuse mount=%s reason='of another backend'", place.mount)
        mounting.take_away(place.mount)
    place.clear()


def _connected(place: Path) -> socket.socket:
    """Raises OSError where nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(str(place))
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return connection


def _started(place: Place) -> subprocess.Popen[bytes]:
    """A process of its own session, which says on our standard error what it has to say; connected to when it listens. Raises OSError
    where it does not come so far."""
    command = [sys.executable, "-m", "modelvold", "fuse", "--run", str(place.run)]
    command += ["--log-level", place.log[0], "--log-format", place.log[1]]
    if place.label:
        command += ["--label", place.label]
    place.socket.unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not place.socket.exists():
        if process.poll() is not None:
            raise OSError(errno.ECONNRESET, f"the process that serves FUSE ended with status {process.returncode}")
        if time.monotonic() - began > _PATIENCE_TO_START:
            process.kill()
            process.wait()
            raise OSError(errno.ETIMEDOUT, "the process that serves FUSE does not start")
        time.sleep(_GLANCE)
    return process
