"""The way through a proxy to a host that is spoken to with TLS: CONNECT (RFC 9110 §9.3.6), and TLS within TLS where the
proxy is spoken to with TLS itself. How long a wait may take, and who wakes it, is the line's to say.

Rules: the proxy is told its own password and the host's name, and nothing of what is asked there. What it answers is read
to the end of its headers and no further: bytes that follow a "yes" unasked would be read as the host's.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator
from typing import Any, Protocol

import modelvold
from modelvold.registry import address as addresses
from modelvold.registry.proxies import Proxy
from modelvold.registry.refusal import ProxyError, by_proxy, cause

_LONGEST_HEAD = 16 << 10
_PIECE = 4 << 10
_RECORDS = 64 << 10
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")


class Channel(Protocol):
    """A connected socket, or what is like one: nothing in it waits, but raises as sockets and SSL objects do."""

    def recv_into(self, buffer: Any, /) -> int: ...

    def send(self, message: Any, /) -> int: ...


class Line(Protocol):
    def sendall(self, message: bytes) -> None: ...

    def receive(self, buffer: Any) -> int | None: ...


@contextlib.contextmanager
def on_the_way(proxy: Proxy) -> Iterator[None]:
    """What fails here fails at the proxy, and not where it was to lead."""
    try:
        yield
    except ProxyError:
        raise
    except OSError as error:
        remedy = f"check {proxy.variable} in the daemon's environment, and the network"
        raise ProxyError(f"the proxy {proxy}: {cause(error)}", remedy) from error


def open_through(line: Line, proxy: Proxy, host: str, port: int) -> None:
    """From here on `line`, which leads to `proxy`, leads to `host`. Raises OSError, ProxyError among them."""
    place = addresses.join(host, port)
    headers = {"Host": place, "User-Agent": f"modelvold/{modelvold.__version__}", **dict(proxy.headers)}
    fields = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
    line.sendall(f"CONNECT {place} HTTP/1.1\r\n{fields}\r\n".encode())
    head, rest = _head(line, proxy)
    form = _STATUS.match(head)
    if form is None or (rest and form[1].startswith(b"2")):
        raise ProxyError(f"the proxy {proxy} does not answer in HTTP", f"check {proxy.variable}")
    if not form[1].startswith(b"2"):
        raise by_proxy(proxy, int(form[1]), place)


def _head(line: Line, proxy: Proxy) -> tuple[bytes, bytes]:
    """Status line and headers, and what came behind them."""
    head, piece = bytearray(), memoryview(bytearray(_PIECE))
    while len(head) < _LONGEST_HEAD:
        got = line.receive(piece)
        if not got:
            raise ProxyError(f"the proxy {proxy} closed the connection without an answer", f"check {proxy.variable}")
        head += piece[:got]
        if (end := _HEAD_ENDS.search(head)) is not None:
            return bytes(head[: end.end()]), bytes(head[end.end() :])
    raise ProxyError(f"the proxy {proxy} answers without an end", f"check {proxy.variable}")


def nested(context: ssl.SSLContext, outer: ssl.SSLSocket, host: str) -> Nested:
    """Nothing is said yet. Raises OSError."""
    try:
        return Nested(context, outer, host)
    except ValueError as error:  # no name that a certificate could have
        raise OSError(f"TLS: {host} is no host's name") from error


class Nested:
    """TLS to `host` within the TLS of `outer`, whose descriptor stays its own. A Channel that can shake hands."""

    def __init__(self, context: ssl.SSLContext, outer: ssl.SSLSocket, host: str) -> None:
        self._outer = outer
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._came, self._goes, server_hostname=host)
        self._unsent = b""

    def do_handshake(self) -> None:
        """As far as it can go without waiting. Raises OSError (SSLWantReadError where it waits for the host)."""
        while True:
            try:
                self._inner.do_handshake()
            except ssl.SSLWantReadError:
                self._more()
            else:
                self.flush()
                return

    def recv_into(self, buffer: Any, /) -> int:
        """As SSLSocket's: an end without the word for it is an end too, for HTTP says how long a body is."""
        while True:
            try:
                got: Any = self._inner.read(len(buffer), buffer)
                return int(got)
            except ssl.SSLWantReadError:
                self._more()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    def send(self, message: Any, /) -> int:
        self.flush()
        try:
            taken = self._inner.write(message)
        except ssl.SSLWantReadError:  # the host wants to settle something first
            self._more()
            return 0
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self.flush()  # the rest goes when the line flushes
        return taken

    def _more(self) -> None:
        self.flush()
        came = self._outer.recv(_RECORDS)
        if came:
            self._came.write(came)
        else:
            self._came.write_eof()

    def flush(self) -> None:
        """What has been said and not sent. Raises OSError, SSLWantWriteError among them."""
        self._unsent += self._goes.read()
        while self._unsent:
            self._unsent = self._unsent[self._outer.send(self._unsent) :]
