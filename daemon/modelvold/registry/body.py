"""A range of a blob on its way: exactly the bytes asked for, or an error that says how many came."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from modelvold.errors import Failure, Malformed, Unreachable
from modelvold.registry import refusal
from modelvold.registry.stream import Stream

_SCRATCH = 64 << 10


class Body:
    """Context manager. One thread reads; `abort` may be called by any.

    `length` is how many bytes it promises, `got` how many came, `host` who sends them.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        length: int,
        skip: int,
        exact: bool,
        timeout: float,
        what: str,
        host: str,
        on_failure: Callable[[], None],
    ) -> None:
        """`skip` bytes come before the range and are thrown away; `exact` says that nothing may come after it.

        `timeout` is how many seconds without a byte end it.
        """
        self.length = length
        self.got = 0
        self.host = host
        self._stream = stream
        self._skip = skip
        self._exact = exact
        self._timeout = timeout
        self._what = what
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

        Raises Unreachable when the connection breaks or falls silent, or after `abort`; Malformed when the registry
        ends the body early or goes on after its end. Nothing in `view` counts when it raises.
        """
        if self._skip:
            self._skip_ahead()
        if self.got == self.length:
            self._end()
            return 0
        got = self._some(view[: self.length - self.got])
        if got == 0:
            raise self._fail(Malformed(f"{self._said()}: the body ended early", "the registry or a proxy cuts answers"))
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
                cause = "the body ended before the range"
                raise self._fail(Malformed(f"{self._said()}: {cause}", "the blob is shorter than the manifest says"))
            self._skip -= got

    def _end(self) -> None:
        """Where HTTP declared a length it was checked beforehand; elsewhere one more byte would be one too many."""
        if self._exact and self._stream.length is None and self._some(memoryview(bytearray(1))):
            raise self._fail(
                Malformed(f"{self._said()}: the body goes on after the range", "the registry answers wrongly")
            )

    def _some(self, view: memoryview) -> int:
        try:
            got = self._stream.readinto(view, self._timeout)
        except (OSError, http.client.HTTPException) as error:
            silent = isinstance(error, TimeoutError)
            cause = f"silent for {self._timeout:g} s" if silent else refusal.cause(error)
            failure = Unreachable(f"{self._said()}: {cause}", "the range is asked for again")
            raise self._fail(failure) from error
        if self._aborted.is_set():
            # A shut connection looks like an end, and what came with it is nobody's any more.
            raise self._fail(Unreachable(f"{self._said()}: given up"))
        return got

    def _fail(self, failure: Failure) -> Failure:
        self._stream.discard()
        if self._aborted.is_set():
            return Unreachable(f"{self._said()}: given up")
        self._on_failure()
        return failure

    def _said(self) -> str:
        return f"{self._what}: {self.host} sent {self.got} of {self.length} bytes"
