"""One connection of the daemon's to the process that serves FUSE."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from typing import TypeVar

from modelvold.mount.fuse import wire
from modelvold.mount.fuse.channel import Channel, peer
from modelvold.mount.fuse.wire import (
    Answer,
    Ask,
    Done,
    Drop,
    Hello,
    Hide,
    Message,
    Ping,
    Serve,
    Show,
    Welcome,
    Withdraw,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Seconds for the process to answer.
_PATIENCE = 10.0


class Link:
    """`on_ask` is told of reads that wait, `on_withdraw` of those that do so no more, by their numbers; `on_end` that the connection has
    ended. By the reading thread."""

    def __init__(
        self,
        connection: socket.socket,
        on_ask: Callable[[Ask], None],
        on_withdraw: Callable[[int], None],
        on_end: Callable[[Link], None],
    ) -> None:
        self.pid, _ = peer(connection)
        self.has_ended = False  # `on_end` is about to be told
        self._on_ask = on_ask
        self._on_withdraw = on_withdraw
        self._on_end = on_end
        self._lock = threading.Lock()  # guards the two below
        self._serial = 0
        self._calls: dict[int, Future[Done]] = {}
        self._welcome: Future[Welcome] = Future()
        self._channel = Channel(connection, self._on_message, self._on_channel_end, "fuse")
        self._channel.start()

    def __repr__(self) -> str:
        return f"<link pid={self.pid}>"

    def greet(self, deadline: float) -> Welcome:
        """Raises OSError(ETIMEDOUT) where it does not answer, and ECONNRESET where it is gone."""
        self._channel.say(Hello(wire.VERSION, deadline))
        return _outcome(self._welcome)

    def show(self, volume: str, image: Path, folders: Sequence[tuple[Path, int]]) -> None:
        """Again, and with other folders, for a volume that is shown. Raises OSError with the process's words."""
        self._call(lambda serial: Show(serial, volume, str(image), wire.folders_of(folders)))

    def hide(self, volume: str) -> None:
        """Raises OSError(EBUSY) while files of it are open."""
        self._call(lambda serial: Hide(serial, volume))

    def ping(self, patience: float) -> None:
        """Raises TimeoutError where it does not answer within so many seconds."""
        self._call(Ping, patience)

    def drop(self, volume: str, pieces: Sequence[tuple[str, int, int]]) -> None:
        self._channel.say(Drop(volume, tuple(pieces)))

    def tell_shown(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `wire.Shown`."""
        self._channel.say(*wire.shown(pairs))

    def serve(self) -> None:
        self._channel.say(Serve())

    def answer(self, answers: Sequence[Answer]) -> None:
        self._channel.say(*answers)

    def close(self) -> None:
        self._channel.close()

    def _call(self, message: Callable[[int], Message], patience: float = _PATIENCE) -> None:
        called: Future[Done] = Future()
        with self._lock:
            self._serial += 1
            serial = self._serial
            self._calls[serial] = called
        if not self._channel.say(message(serial)):
            self._give_up()
        done = _outcome(called, patience)
        if done.code:
            raise OSError(done.code, done.message)

    def _on_message(self, message: Message) -> None:
        match message:
            case Ask():
                self._on_ask(message)
            case Withdraw(number):
                self._on_withdraw(number)
            case Done(serial):
                with self._lock:
                    called = self._calls.pop(serial, None)
                if called is not None:
                    called.set_result(message)
            case Welcome() if not self._welcome.done():
                self._welcome.set_result(message)
            case _:
                log.error("ignore message=%s", type(message).__name__)

    def _on_channel_end(self) -> None:
        self.has_ended = True
        self._give_up()
        self._on_end(self)

    def _give_up(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, {}
        gone = ConnectionResetError(errno.ECONNRESET, "the process that serves FUSE has ended")
        for called in calls.values():
            called.set_exception(gone)
        if not self._welcome.done():
            self._welcome.set_exception(gone)


def _outcome(future: Future[_T], patience: float = _PATIENCE) -> _T:
    try:
        return future.result(patience)
    except TooLate as error:
        raise TimeoutError(errno.ETIMEDOUT, "the process that serves FUSE does not answer") from error
