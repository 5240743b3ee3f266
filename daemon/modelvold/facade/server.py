"""The façade's socket and threads: HTTP in, the desk's answers out.

One connection, one request: nothing idle holds a thread, and a restart leaves no half-open connection behind.
Connections are bounded, each read and write of them has a time-out, and every refusal is one log line.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import sys
import threading
import time
from contextlib import ExitStack, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import urlsplit

from modelvold import __version__
from modelvold.errors import InUse, Unsupported
from modelvold.facade.answer import Answer, refused
from modelvold.facade.desk import Desk
from modelvold.facade.patience import PATIENCE, Patience
from modelvold.facade.ports import Given, Upstream

log = logging.getLogger(__name__)

#: containerd asks for a handful of documents an image, some images at once.
MOST_CONNECTIONS = 64
#: For each read and write of a request, in seconds. Both ends are on this machine.
_SOCKET_TIMEOUT = 10.0
#: How often the accepting thread looks whether it should end, in seconds.
_POLL = 0.25
_FAREWELL = 2.0


class Facade:
    """Listens while its `with` lasts. `listen` is (host, port), a loopback address; `architecture` is Go's name of
    the node's."""

    def __init__(
        self,
        listen: tuple[str, int],
        upstream: Upstream,
        given: Given,
        architecture: str,
        *,
        patience: float = PATIENCE,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self._listen = listen
        self._patience = Patience(patience)
        self._desk = Desk(upstream, given, self._patience, architecture)
        self._most = most_connections
        self._listener: _Listener | None = None
        self._life = ExitStack()

    def __repr__(self) -> str:
        return f"<Facade {self.address if self._listener else 'closed'}>"

    @property
    def address(self) -> str:
        """host:port as bound."""
        host, port = self._listener.server_address[:2] if self._listener else self._listen
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def __enter__(self) -> Self:
        """Raises InUse when the address is taken, Unsupported when it cannot be listened on."""
        host, port = self._listen
        try:
            listener = _Listener((host, port), self._desk, self._most)
        except OSError as error:
            noun = InUse if error.errno == errno.EADDRINUSE else Unsupported
            raise noun(f"façade: cannot listen on {host}:{port}: {error.strerror}", "change [facade] listen") from error
        thread = threading.Thread(target=listener.serve_forever, args=(_POLL,), name="facade")
        # Undone in reverse: no new connections, then whoever waits upstream is told, then the answers are finished.
        self._life.callback(listener.finish)
        self._life.enter_context(self._patience)
        self._life.callback(listener.server_close)
        self._life.callback(thread.join)
        self._life.callback(listener.shutdown)
        thread.start()
        self._listener = listener
        log.info("open facade address=%s", self.address)
        return self

    def __exit__(self, *_: object) -> None:
        log.info("close facade address=%s", self.address)
        self._life.close()
        self._listener = None


class _Listener(socketserver.TCPServer):
    """TCPServer and not HTTPServer, which asks the name service for the name of its own address."""

    allow_reuse_address = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], desk: Desk, most: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.desk = desk
        self._most = most
        self._live: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()  # guards _live
        super().__init__(address, _Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._converse, args=(request, client_address), name="facade-request", daemon=True
        )
        with self._lock:
            self._live = {other: its for other, its in self._live.items() if other.is_alive()}
            admitted = len(self._live) < self._most
            if admitted:
                thread.start()
                self._live[thread] = request
        if not admitted:
            self._turn_away(request)

    def _converse(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            log.debug("lose connection reason=%s", error)
        except Exception:
            log.exception("break off connection")
        finally:
            self.shutdown_request(request)

    def _turn_away(self, request: socket.socket) -> None:
        log.warning("refuse connection status=503 reason='%d connections are open'", self._most)
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.warning("lose connection reason=%s", sys.exception())

    def finish(self) -> None:
        """Lets answers under way be written; whoever has not finished asking is cut off."""
        with self._lock:
            live = dict(self._live)
        for request in live.values():
            with suppress(OSError):
                request.shutdown(socket.SHUT_RD)
        until = time.monotonic() + _FAREWELL
        for thread in live:
            thread.join(max(0.0, until - time.monotonic()))


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: _Listener
    timeout = _SOCKET_TIMEOUT
    protocol_version = "HTTP/1.1"
    server_version = f"modelvold/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        self._reply(self._answer(head=False))

    def do_HEAD(self) -> None:
        self._reply(self._answer(head=True))

    def _answer(self, *, head: bool) -> Answer:
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            return self.server.desk.answer(self.path, headers, head=head)
        except Exception:
            log.exception("fail request method=%s path=%r", self.command, self._subject())
            return refused(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", "modelvold failed to answer; its log says why")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the protocol itself refuses: other methods, malformed requests."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.request_version = self.protocol_version  # what could not be parsed counts as HTTP/0.9, without a status
        self._reply(refused(status, "UNSUPPORTED", message or status.phrase))

    def _reply(self, answer: Answer) -> None:
        self._tell(answer)
        self.close_connection = True
        self.send_response(answer.status, answer.phrase if self.command == "HEAD" else None)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _tell(self, answer: Answer) -> None:
        if not answer.reason:
            return
        level = logging.DEBUG if answer.is_ordinary else logging.WARNING
        if answer.status is HTTPStatus.UNAUTHORIZED:
            level = logging.INFO  # a challenge first, a refusal only when it comes again
        subject, status = self._subject(), int(answer.status)
        log.log(
            level, "refuse request method=%s path=%r status=%d reason=%r", self.command, subject, status, answer.reason
        )

    def _subject(self) -> str:
        """The path alone: a query is anybody's text."""
        return urlsplit(getattr(self, "path", "")).path[:300]

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        log.debug("answer request method=%s path=%r status=%s", self.command, self._subject(), code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name for it
        log.debug("note request text=%r", format % args)
