"""A stand-in for systemd, as one service sees it: its notify socket, its descriptor store, its watchdog.

    with Systemd(folder) as systemd, Daemon(folder / "daemon", service=systemd) as daemon:
        daemon.kill9()
        daemon.start()     # with what was kept, as LISTEN_FDS

The rules are those of sd_notify(3), sd_listen_fds(3), FileDescriptorStoreMax= and FileDescriptorStorePreserve=restart: what is kept
survives restarts and crashes, and is closed when the service is stopped. What was sent before a service's end is heard before its
next start. Who starts the service again is the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

#: FileDescriptorStoreMax=, as in our unit.
MOST_KEPT = 4
_MESSAGE = 4096
_BARRIER = "STAND_IN_BARRIER="
#: Puts the descriptors whose numbers are its first word where a service expects them, and becomes the rest of its words.
_LAUNCHER = """
import fcntl, os, sys
given = [int(number) for number in sys.argv[1].split(",") if number]
moved = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in given]
for number in given:
    os.close(number)
for at, number in enumerate(moved):
    os.dup2(number, 3 + at)
    os.close(number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Systemd:
    """`watchdog`: WatchdogSec=, 0 for none; a service that misses it gets SIGABRT."""

    def __init__(self, folder: Path, *, watchdog: float = 0.0) -> None:
        self._address = folder / "notify"
        self._watchdog = watchdog
        self._lock = threading.Lock()  # guards what follows
        self._kept: list[tuple[str, int]] = []
        self._pid = 0
        self._last_sign = 0.0
        self.signs: list[float] = []  # when each WATCHDOG=1 came, on the monotonic clock
        self.missed = 0
        self.is_ready = False
        self.is_stopping = False
        self._barriers: set[str] = set()

    # -- for tests.lab.program

    def words(self, command: Sequence[str]) -> list[str]:
        """What starts `command` with the descriptors that are kept."""
        numbers = ",".join(str(descriptor) for _, descriptor in self._kept)
        return [sys.executable, "-I", "-S", "-c", _LAUNCHER, numbers, *command]

    @property
    def descriptors(self) -> list[int]:
        return [descriptor for _, descriptor in self._kept]

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {
            "LISTEN_FDS": str(len(self._kept)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in self._kept),
        }
        watchdog = {"WATCHDOG_USEC": str(int(self._watchdog * 1e6))} if self._watchdog else {}
        return {"NOTIFY_SOCKET": str(self._address), **watchdog, **(kept if self._kept else {})}

    def before_start(self) -> None:
        self._settle()
        with self._lock:
            self.is_ready = self.is_stopping = False
            self.signs = []

    def started(self, pid: int) -> None:
        with self._lock:
            self._pid = pid

    # -- for tests

    @property
    def kept(self) -> list[str]:
        """The names of what is kept, once everything that was sent is heard."""
        self._settle()
        return [name for name, _ in self._kept]

    def given(self) -> list[tuple[str, int]]:
        """What is kept, by name, as this process would have it if it were the service."""
        self._settle()
        return [(name, os.dup(descriptor)) for name, descriptor in self._kept]

    def discard(self) -> None:
        """As at a stop."""
        self._settle()
        with self._lock:
            kept, self._kept = self._kept, []
        for _, descriptor in kept:
            os.close(descriptor)

    def __enter__(self) -> Self:
        self._address.parent.mkdir(parents=True, exist_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._address))
        self._socket.settimeout(0.1)
        self._is_ending = False
        self._thread = threading.Thread(target=self._hear, name="systemd")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()
        self._is_ending = True
        self._thread.join()
        self._socket.close()
        self._address.unlink()

    def _settle(self) -> None:
        """Everything sent so far has been heard."""
        word = f"{_BARRIER}{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.connect(str(self._address))
            ours.send(word.encode())
        while True:
            with self._lock:
                if word in self._barriers:
                    self._barriers.remove(word)
                    return
            time.sleep(0.001)

    def _hear(self) -> None:
        while not self._is_ending:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._socket, _MESSAGE, MOST_KEPT)
            except TimeoutError:
                self._watch()
                continue
            lines = message.decode().splitlines()
            with self._lock:
                self._on_message(lines, dict(line.partition("=")[::2] for line in lines), descriptors)
            self._watch()

    def _on_message(self, lines: list[str], said: dict[str, str], descriptors: list[int]) -> None:
        if lines[0].startswith(_BARRIER):
            self._barriers.add(lines[0])
        if said.get("READY") == "1":
            self.is_ready = True
            self._last_sign = time.monotonic()
        self.is_stopping |= said.get("STOPPING") == "1"
        if said.get("WATCHDOG") == "1":
            self._last_sign = time.monotonic()
            self.signs.append(self._last_sign)
        if said.get("FDSTOREREMOVE") == "1":
            for name, descriptor in [each for each in self._kept if each[0] == said["FDNAME"]]:
                self._kept.remove((name, descriptor))
                os.close(descriptor)
        for descriptor in descriptors:
            if said.get("FDSTORE") == "1" and len(self._kept) < MOST_KEPT:
                self._kept.append((said.get("FDNAME", "stored"), descriptor))
            else:
                os.close(descriptor)

    def _watch(self) -> None:
        with self._lock:
            is_late = self.is_ready and not self.is_stopping and time.monotonic() > self._last_sign + self._watchdog
            if self._watchdog and is_late:
                self.is_ready = False
                self.missed += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGABRT)
