"""A range of a blob on its way: exactly the bytes asked for, or an error that says how many came.

What ends early is trouble on the way (a cut line, a proxy's time-out) and may be asked for again from where it ended. So may what
is silent for too long, and what comes too slowly to be of use: a byte now and then must not hold a connection for ever.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from modelvold.errors import Failure, Malformed, Unreachable
from modelvold.registry import refusal
from modelvold.registry.stream import Stream

#: Bytes a second, averaged over the time-out. At this rate a whole segment takes more than an hour and a reader's 128 KiB half a
#: minute: another connection, or another host, can only be better.
LEAST_RATE = 4 << 10
_SCRATCH = 64 << 10
_AGAIN = "the range is asked for again"


class Body:
    """Context manager. One thread reads; `abort` may be called by any.

    `length` is how many bytes it promises, `got` how many came; the first `ahead` of them lie before the range that was asked for,
    where a host ignores ranges and whoever asked takes what it sends. `host` is the registry's host that was asked, as hosts.toml
    names it, wherever it sent us.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        length: int,
        skip: int,
        ahead: int = 0,
        exact: bool,
        timeout: float,
        what: str,
        host: str,
        sender: str,
        on_failure: Callable[[], None],
    ) -> None:
        """`skip` bytes come before the first of `length` and are thrown away; `exact` says that nothing may come after it.

        `timeout` is how many seconds without a byte end it. `sender` is who sends, for errors.
        """
        self.length = length
        self.ahead = ahead
        self.got = 0
        self.host = host
        self._stream = stream
        self._skip = skip
        self._exact = exact
        self._timeout = timeout
        self._pace = _Pace(timeout)
        self._what = what
        self._sender = sender
        self._on_failure = on_failure
        self._aborted = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def readinto(self, view: memoryview) -> int:
        """Put some bytes into `view` (not empty), as soon as there are any, and return how many; 0 at the end of the
        range.

        Raises Unreachable when the connection breaks, ends early, falls silent or is too slow, or after `abort`; Malformed when
        the registry goes on after the range's end. Nothing in `view` counts when it raises.
        """
        if self._skip:
            self._skip_ahead()
        if self.got == self.length:
            self._end()
            return 0
        got = self._some(view[: self.length - self.got])
        if got == 0:
            raise self._fail(Unreachable(f"{self._said()}: the body ended early", _AGAIN))
        self.got += got
        return got

    def abort(self) -> None:
        """Make the reader, waiting or not, raise Unreachable. Safe from any thread, also after the end."""
        self._aborted.set()
        self._stream.abort()

    def close(self) -> None:
        """Give the connection back if everything was read to its exact end, else end it."""
        if self._aborted.is_set() or self.got != self.length:
            self._stream.discard()
        else:
            self._stream.finish()

    def _skip_ahead(self) -> None:
        scratch = memoryview(bytearray(_SCRATCH))
        while self._skip:
            got = self._some(scratch[: self._skip])
            if got == 0:
                raise self._fail(Unreachable(f"{self._said()}: the body ended before the range", _AGAIN))
            self._skip -= got

    def _end(self) -> None:
        """Where HTTP declared a length it was checked beforehand; elsewhere one more byte would be one too many."""
        if self._exact and self._stream.length is None and self._some(memoryview(bytearray(1))):
            raise self._fail(
                Malformed(f"{self._said()}: the body goes on after the range", "the registry answers wrongly")
            )

    def _some(self, view: memoryview) -> int:
        began = time.monotonic()
        try:
            got = self._stream.readinto(view, self._pace.patience)
        except (OSError, http.client.HTTPException) as error:
            cause = self._pace.cause if isinstance(error, TimeoutError) else refusal.cause(error)
            raise self._fail(Unreachable(f"{self._said()}: {cause}", _AGAIN)) from error
        if self._aborted.is_set():
            # A shut connection looks like an end, and what came with it is nobody's any more.
            raise self._fail(Unreachable(f"{self._said()}: given up"))
        if not self._pace.note(got, time.monotonic() - began):
            raise self._fail(Unreachable(f"{self._said()}: {self._pace.cause}", _AGAIN))
        return got

    def _fail(self, failure: Failure) -> Failure:
        self._stream.discard()
        if self._aborted.is_set():
            return Unreachable(f"{self._said()}: given up")
        self._on_failure()
        return failure

    def _said(self) -> str:
        return f"{self._what}: {self._sender} sent {self.got} of {self.length} bytes"


class _Pace:
    """How fast it comes, looked at once for every `timeout` seconds spent waiting: what we do with the bytes meanwhile counts for
    nobody."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._least = LEAST_RATE * timeout
        self._came = 0
        self._waited = 0.0

    @property
    def patience(self) -> float:
        """Seconds to wait for the next byte."""
        return self._timeout if self._came >= self._least else self._timeout - self._waited

    @property
    def cause(self) -> str:
        """Why it was given up, where a wait of `patience` seconds was in vain, or `note` says so."""
        if self._came < self._least and self.patience < self._timeout / 2:
            return f"too slow, {self._came} bytes in {self._timeout:g} s"
        return f"silent for {self._timeout:g} s"

    def note(self, got: int, waited: float) -> bool:
        """So many bytes came after so many seconds. False where that is too slow."""
        self._came += got
        self._waited += waited
        if self._waited < self._timeout:
            return True
        if self._came < self._least:
            return False
        self._came, self._waited = 0, 0.0
        return True
