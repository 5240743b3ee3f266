"""A program of the laboratory while it runs: one life, with a log file and an end.

A program is a session of its own, so Ctrl-C reaches us and not it, and we end it in our order: SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.systemd import Systemd

_PATIENCE = 30.0


class Failed(Exception):
    """A program did not come up, or ended by itself; the message ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, and that the kernel gives to no outgoing connection meanwhile: it lies
    below the range from which those are taken (`ip_local_port_range`, from 32768 on by default)."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # what a former server left in TIME_WAIT is no listener
            probe.bind(("127.0.0.1", port))
            return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Callable[[], bool], patience: float = _PATIENCE) -> bool:
    """Whether `true()` became so within `patience` seconds; asked every 10 ms."""
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Program:
    """`command`, its output appended to `log`. `is_ready` says when `start()` may return. A `service` stands for systemd."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        is_ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        service: Systemd | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        self._is_ready = is_ready
        self._environment = {**os.environ, **(environment or {})}
        self._service = service
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Raises Failed when it is not running."""
        if self._running is None or self._running.poll() is not None:
            raise Failed(f"{self.name} is not running\n{self.tail()}")
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status of one that has ended by itself, or by a signal that we did not send: then that, negative."""
        return self._running.poll() if self._running else None

    def start(self, patience: float = _PATIENCE) -> None:
        """Returns when ready. Raises Failed if it ends before, or is not ready after `patience` seconds."""
        self.begin()
        wait_until(lambda: self._running is None or self._running.poll() is not None or self._is_ready(), patience)
        if not self.is_running or not self._is_ready():
            self.kill()
            raise Failed(f"{self.name} did not come up; the end of {self.log}:\n{self.tail()}")

    def begin(self) -> None:
        """Starts it, and waits for nothing."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self._service:
            self._service.before_start()
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self._service.words(self._command) if self._service else self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(self._service.environment if self._service else {})},
                start_new_session=True,
                pass_fds=self._service.descriptors if self._service else (),
            )
        if self._service:
            self._service.started(self._running.pid)

    def stop(self, patience: float = 20.0) -> int | None:
        """Ends it with SIGTERM, after `patience` seconds with SIGKILL. The exit status, None if it was not running."""
        return self._end(signal.SIGTERM, patience)

    def kill(self) -> int | None:
        """SIGKILL."""
        return self._end(signal.SIGKILL, 20.0)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _end(self, how: signal.Signals, patience: float) -> int | None:
        running, self._running = self._running, None
        if running is None:
            return None
        if running.poll() is None:
            running.send_signal(how)
        try:
            return running.wait(patience)
        except subprocess.TimeoutExpired:
            running.kill()
            return running.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
