"""How long, and for how many at once, registries may keep us waiting.

A registry that accepts and never answers must cost only those who asked for it: each conversation has a thread of
its own, so many a host and no more, and whoever asked is answered when its time is over. The conversation goes on
until the client's own time-outs end it, and what it learns serves the next one who asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any, Self, TypeVar

from modelvold.errors import Exhausted, NotYet, Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

#: containerd waits for headers without a limit of its own, and a pull that hangs says nothing to anybody.
PATIENCE = 15.0
#: Conversations with one host at once. A node starts a handful of pods a second; a healthy registry answers in a
#: fraction of one.
MOST_EACH = 8
#: What the end of the daemon waits for conversations under way, in seconds.
_FAREWELL = 2.0


class Patience:
    """Runs conversations with registries, each for at most `seconds` as seen by who waits. `with` ends them."""

    def __init__(self, seconds: float = PATIENCE, most_each: int = MOST_EACH) -> None:
        self._seconds = seconds
        self._most_each = most_each
        self._under_way: Counter[str] = Counter()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()  # guards _under_way and _threads
        self._ended: Future[None] = Future()

    def __repr__(self) -> str:
        return f"<Patience {self._seconds:g}s {dict(self._under_way)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Answers whoever waits at once, and waits a moment for the conversations themselves."""
        self._ended.set_result(None)
        until = time.monotonic() + _FAREWELL
        with self._lock:
            threads = tuple(self._threads)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        left = sum(thread.is_alive() for thread in threads)
        if left:
            log.warning("abandon conversations count=%d hosts=%s", left, ",".join(sorted(self._under_way)))

    def ask(self, host: str, conversation: Callable[[], T]) -> T:
        """The result of `conversation` with `host`, or what it raised.

        Raises Unreachable when it takes too long, Exhausted when too many with that host are under way, NotYet when the
        daemon ends.
        """
        result: Future[T] = Future()
        self._begin(host, conversation, result)
        either: tuple[Future[Any], ...] = (result, self._ended)
        wait(either, timeout=self._seconds, return_when=FIRST_COMPLETED)
        if result.done():
            return result.result()
        if self._ended.done():
            raise NotYet(f"{host}: modelvold is stopping", "try again")
        raise Unreachable(f"{host}: the registry has not answered for {self._seconds:g} s", "check that it is up")

    def _begin(self, host: str, conversation: Callable[[], T], result: Future[T]) -> None:
        run = partial(self._run, host, conversation, result)
        thread = threading.Thread(target=run, name="facade-upstream", daemon=True)
        with self._lock:
            if self._under_way[host] >= self._most_each:
                raise Exhausted(
                    f"{host}: {self._most_each} requests are waiting for this registry already",
                    "check that the registry answers",
                )
            thread.start()
            self._under_way[host] += 1
            self._threads = {other for other in self._threads if other.is_alive()} | {thread}

    def _run(self, host: str, conversation: Callable[[], T], result: Future[T]) -> None:
        try:
            answer = conversation()
        except BaseException as error:  # noqa: BLE001 - carried to who asked, which raises it
            self._end(host)
            result.set_exception(error)
        else:
            self._end(host)
            result.set_result(answer)

    def _end(self, host: str) -> None:
        """Before the result is given, so that who has it can ask again at once."""
        with self._lock:
            self._under_way[host] -= 1
            if not self._under_way[host]:
                del self._under_way[host]
