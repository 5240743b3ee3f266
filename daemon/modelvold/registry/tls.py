"""TLS contexts, one for each set of files and switches; read again when a certificate file changes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from modelvold.errors import InvalidInput
from modelvold.registry.hosts_toml import Tls

#: A context holds the system's CAs (about 1 MB); nodes name a handful of registries.
_MOST = 32
#: What OpenSSL says of a first answer that is no TLS record: the server speaks plain HTTP.
_PLAIN_ANSWERS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})


class Contexts:
    """Thread-safe."""

    def __init__(self) -> None:
        self._contexts: OrderedDict[tuple[Tls, tuple[int, ...]], ssl.SSLContext] = OrderedDict()
        self._lock = threading.Lock()  # guards _contexts

    def of(self, tls: Tls) -> ssl.SSLContext:
        """The context for `tls`. Raises InvalidInput naming the file that is missing or is no certificate."""
        files = (*tls.ca, *(file for pair in tls.client for file in pair if file is not None))
        key = (tls, tuple(_changed(file) for file in files))
        with self._lock:
            known = self._contexts.get(key)
        if known is not None:
            return known
        context = _context(tls)
        with self._lock:
            context = self._contexts.setdefault(key, context)
            while len(self._contexts) > _MOST:
                self._contexts.popitem(last=False)
        return context


class PlainAnswerError(OSError):
    """A handshake failed because `host`:`port` does not speak TLS at all."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__("TLS: it answers without TLS")
        self.host = host
        self.port = port


def secured(context: ssl.SSLContext, connected: socket.socket, host: str) -> ssl.SSLSocket:
    """TLS over `connected`, whose descriptor it takes; nothing is said yet. Raises OSError."""
    try:
        return context.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
    except ValueError as error:  # no name that a certificate could have
        connected.close()
        raise OSError(f"TLS: {host} is no host's name") from error


def shake_hands(do: Callable[[], None], host: str, port: int) -> None:
    """Raises what `do` does; PlainAnswerError for a server without TLS."""
    try:
        do()
    except ssl.SSLError as error:
        if error.reason in _PLAIN_ANSWERS:
            raise PlainAnswerError(host, port) from error
        raise


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}", "hosts.toml names it; mend the path there") from error


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    for file in tls.ca:
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:
            cause = f"not a PEM file of certificates: {error}"
            raise InvalidInput(f"{file}: {cause}", "hosts.toml names it as ca") from error
    for certificate, key in tls.client:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            cause = f"not a certificate with its private key: {error}"
            raise InvalidInput(f"{certificate}: {cause}", "hosts.toml names it as client") from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
