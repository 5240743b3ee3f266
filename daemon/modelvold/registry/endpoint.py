"""Where a connection leads, and by which way."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any

from modelvold.registry.proxies import Proxy

Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Via:
    """A proxy, and the context to speak to itself with; None for plain HTTP."""

    proxy: Proxy
    context: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection leads, and through which proxy. `context` is None for plain HTTP, and compares by identity: other
    trust, other connections.
    """

    host: str
    port: int
    context: ssl.SSLContext | None
    via: Via | None = None

    @property
    def forwarder(self) -> Proxy | None:
        """The proxy that reads what is asked here, and asks in our place; through TLS it cannot."""
        return self.via.proxy if self.via is not None and self.context is None else None


def look_up(host: str, port: int) -> list[tuple[int, int, int, Address]]:
    """Family, kind, protocol and address of each place the name stands for. Cannot be woken. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a redirect may name anything
        raise OSError(f"{host} is no host's name") from error
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
