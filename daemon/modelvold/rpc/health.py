"""`/healthz` and `/readyz` over HTTP, for probes.

`/healthz` is 200 while the gate's loop lives: when it has ended, reads of missing bytes wait or fail, and only a
new start mends it. `/readyz` is 503 with the reason while new volumes cannot be given. Both answer from memory.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import TracebackType
from typing import Any, Self

from modelvold.errors import Refused

log = logging.getLogger(__name__)

#: Probes ask one question each; more than this many at a time are closed unanswered, so nobody makes us start threads.
_MOST_AT_ONCE = 16
#: Seconds an asker has to say what it wants, and how long the end of the server may wait for it.
_PATIENCE = 2.0


class Health:
    """Answers while its `with` block runs. `alive()` is the gate's, `unready()` the reason not to be ready, or empty.

    Entering raises Refused when the address is taken or is none of this machine's.
    """

    def __init__(self, host: str, port: int, alive: Callable[[], bool], unready: Callable[[], str]) -> None:
        self._address, self._alive, self._unready = (host, port), alive, unready
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Where it listens: the port given, or the one that the kernel chose for 0."""
        return self._server.server_port if self._server else self._address[1]

    def __enter__(self) -> Self:
        try:
            self._server = _Server(self._address, self._answer)
        except OSError as error:
            host, port = self._address
            cause = error.strerror or str(error)
            raise Refused(f"health on {host}:{port}: {cause}", "choose another `[metrics] listen`") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health")
        self._thread.start()
        log.info("serve health=%s:%s", self._address[0], self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server and self._thread:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _answer(self, path: str) -> tuple[int, str]:
        if path == "/healthz":
            return (200, "ok") if self._alive() else (503, "the gate's loop has ended; restart the daemon")
        if path == "/readyz":
            reason = self._unready()
            return (503, reason) if reason else (200, "ok")
        return 404, "there is /healthz and /readyz"


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], answer: Callable[[str], tuple[int, str]]) -> None:
        self.answer = answer
        self._free = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Asked)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("fail probe from=%s", client_address, exc_info=True)


class _Asked(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE
    server_version = "modelvold"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            status, text = self.server.answer(self.path.partition("?")[0])
        except Exception:
            log.exception("fail probe path=%r", self.path[:100])
            status, text = 500, "see the log of modelvold"
        body = f"{text}\n".encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Probes come every few seconds and are no event."""
