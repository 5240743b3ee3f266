"""How `requests` reaches a registry for us: always with a time-out, with the registry's own certificates, and so
that it can be ended from another thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import weakref
from typing import Any

import requests
import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

#: Seconds to connect and for one block to leave; seconds for an answer, in which a registry may copy the whole blob to
#: its storage.
TIMEOUTS = (30.0, 300.0)


class Adapter(requests.adapters.HTTPAdapter):
    """`context` for TLS, None for plain HTTP."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._lock = threading.Lock()  # guards _open
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        if self._context is not None:
            options["ssl_context"] = self._context
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools()

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        options["timeout"] = options.get("timeout") or TIMEOUTS
        return super().send(request, *args, **options)

    def abort(self) -> None:
        """Whoever waits for an answer, or sends, is told at once that the connection has ended. From any thread."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError, AttributeError):  # it was never connected, or has just ended
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # `clear` only forgets the pools: their sockets would live as long as the last traceback that saw an answer.
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 (no plain dict: it cannot be iterated)
            pool = self.poolmanager.pools.get(key)
            if pool is not None:
                pool.close()
        super().close()

    def _pools(self) -> dict[str, type[HTTPConnectionPool]]:
        """urllib3's own, whose connections are noted here as they open."""
        note = self._note

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                note(self)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                note(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        return {"http": PlainPool, "https": SecurePool}

    def _note(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.add(connection)
