"""A real HTTP proxy on loopback that knows a few names of its own: so that tests may speak to `registry.test`.

It tunnels (CONNECT) and forwards (absolute-form), over kept-alive connections, and ends all of them with its `with`. What it
was asked is in `asked`; what it does wrong is set at any time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.fakes.authority import Identity

_OWN = frozenset({"proxy-authorization", "proxy-connection", "connection"})


@dataclass(slots=True)
class Asked:
    """One request as the proxy saw it. `target` as it was written; `connection` is equal for requests on one."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)  # names in lower case
    connection: int


class FakeProxy:
    """`names` leads `host:port` to `127.0.0.1:port`; others get 502. `user` ("name:password") is who may ask at all; `tls` the
    identity it shows where it is spoken to with TLS itself.
    """

    def __init__(self, names: Mapping[str, str], user: str = "", tls: Identity | None = None) -> None:
        self.names = dict(names)
        self.expected = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self.context = tls.server_context() if tls else None
        self.asked: list[Asked] = []
        #: Answered to everything, if set.
        self.status: int | None = None
        #: Sent instead of an answer to CONNECT, behind a "yes" to it, and not even that.
        self.nonsense = b""
        self.extra = b""
        self.hang = False
        self.ending = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, user: str = "") -> str:
        return f"{'https' if self.context else 'http'}://{f'{user}@' if user else ''}{self.address}"

    def tunnels(self) -> list[str]:
        return [asked.target for asked in tuple(self.asked) if asked.method == "CONNECT"]

    def forwarded(self) -> list[str]:
        return [asked.target for asked in tuple(self.asked) if asked.method != "CONNECT"]

    def end_connections(self) -> None:
        """As a proxy that is restarted."""
        self._server.end_connections()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close, so that nothing outlives the proxy
    request_queue_size = 128

    def __init__(self, proxy: FakeProxy) -> None:
        self.proxy = proxy
        self.sockets: set[socket.socket] = set()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Conversation)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.hold(request)
        try:
            if self.proxy.context is not None:
                request.settimeout(10)
                request = self.proxy.context.wrap_socket(request, server_side=True)
                request.settimeout(None)
                self.hold(request)
            super().process_request_thread(request, client_address)
        except OSError:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many tests are about."""

    def hold(self, one: socket.socket) -> None:
        with self.lock:
            self.sockets = {held for held in self.sockets if held.fileno() >= 0} | {one}

    def end_connections(self) -> None:
        with self.lock:
            for one in self.sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Conversation(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """`asked` is the log."""

    def do_CONNECT(self) -> None:
        place = self._place(self.path)
        if place is None:
            return
        if self.server.proxy.nonsense:
            self.wfile.write(self.server.proxy.nonsense)
            self.close_connection = True
            return
        with socket.create_connection(place) as far:
            self.server.hold(far)
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n" + self.server.proxy.extra)
            self._relay(far)
        self.close_connection = True

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def _place(self, name: str) -> tuple[str, int] | None:
        """Where `name` is; None where the answer was given already."""
        proxy = self.server.proxy
        headers = {name.lower(): text for name, text in self.headers.items()}
        proxy.asked.append(Asked(self.command, self.path, headers, self.client_address[1]))
        if proxy.hang:
            proxy.ending.wait()
        elif proxy.expected and headers.get("proxy-authorization", "") != proxy.expected:
            self._refuse(407)
        elif proxy.status is not None or name not in proxy.names:
            self._refuse(proxy.status or 502)
        else:
            host, _, port = proxy.names[name].rpartition(":")
            return host, int(port)
        self.close_connection = True
        return None

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Proxy-Authenticate", 'Basic realm="fake"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _forward(self) -> None:
        parts = urlsplit(self.path)
        place = self._place(parts.netloc if parts.port else f"{parts.netloc}:80")
        if place is None:
            return
        far = http.client.HTTPConnection(*place)
        try:
            far.putrequest(self.command, f"{parts.path}?{parts.query}", skip_host=True, skip_accept_encoding=True)
            for name, text in self.headers.items():
                if name.lower() not in _OWN:
                    far.putheader(name, text)
            far.endheaders()
            answer = far.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, text in answer.getheaders():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)
        finally:
            far.close()

    def _relay(self, far: socket.socket) -> None:
        near, others = self.connection, {self.connection: far, far: self.connection}
        with contextlib.suppress(OSError):
            while True:
                buffered = isinstance(near, ssl.SSLSocket) and near.pending()
                for one in [near] if buffered else select.select([near, far], [], [])[0]:
                    piece = one.recv(64 << 10)
                    if not piece:
                        return
                    others[one].sendall(piece)
