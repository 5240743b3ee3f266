"""Requests on the wire: one round trip, and the redirects that follow from it.

Rules: what is secret (Authorization, the headers of hosts.toml) goes to the host it is meant for and to nobody a
redirect names, even if a later redirect leads back. From https nothing leads to plain http. Every request says that it
is ours (`Modelvold-Hop`), so that our own façade can refuse a loop. Each is made through the proxy that stands before the
place it goes to, if any: what is secret to the proxy goes to the proxy alone.
"""

from __future__ import annotations

import http.client
import logging
import math
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urljoin, urlsplit

import modelvold
from modelvold.errors import InvalidInput, Malformed
from modelvold.registry import address as addresses
from modelvold.registry import refusal, targets
from modelvold.registry.connection import Connection, Pool
from modelvold.registry.deadline import Deadline
from modelvold.registry.endpoint import Endpoint, Via
from modelvold.registry.hosts_toml import NO_TLS, Tls
from modelvold.registry.proxies import NO_PROXIES, Proxies
from modelvold.registry.stream import Stream
from modelvold.registry.tls import Contexts

log = logging.getLogger(__name__)

HOP_HEADER = "Modelvold-Hop"
_MOST_REDIRECTS = 5
_MISLED = "its storage or proxy is set up wrongly"
_PROXY_REFUSES = 407
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Identity: a range of a compressed representation is no range of the blob.
_OURS = (
    ("User-Agent", f"modelvold/{modelvold.__version__}"),
    (HOP_HEADER, "1"),
    ("Accept-Encoding", "identity"),
)
_NEVER_FROM_OUTSIDE = frozenset(
    {"host", "range", "accept", "accept-encoding", "user-agent", "connection", "content-length", "transfer-encoding"}
    | {HOP_HEADER.lower(), "proxy-authorization"}
)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` go wherever redirects lead, `secret` only to `url`'s own host. `what` names the thing asked for in
    errors.

    `silence` bounds each wait, `connect` the making of a connection, both in seconds.
    """

    method: str
    url: str
    what: str
    headers: Headers = ()
    secret: Headers = field(default=(), repr=False)
    tls: Tls = NO_TLS
    connect: float = 10.0
    silence: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`asked` is who was asked, `address` who answered; `crossed` that a redirect has led away from who was asked.

    `url` is where the answer came from, signed by whoever redirected, for `lasts` seconds at least. `via` is the proxy that
    forwarded it and may have made it up; empty where none was, or TLS kept it from doing so.
    """

    status: int
    headers: http.client.HTTPMessage
    stream: Stream
    asked: str
    address: str
    crossed: bool
    url: str = field(default="", repr=False)
    lasts: float = 0.0
    via: str = ""


class Wire:
    """Sends requests. Thread-safe."""

    def __init__(self, proxies: Proxies = NO_PROXIES) -> None:
        self._proxies = proxies
        self._contexts = Contexts()
        self._pool = Pool()

    def close(self) -> None:
        self._pool.close()

    def follow(self, request: Request, deadline: Deadline, *, target: str = "") -> Answer:
        """The answer after redirects; its stream is the caller's to finish. `target` is where redirects have led from
        `request.url` before: it is asked at once, as it would have been then.

        Raises Malformed for redirects that cannot be followed, OSError and http.client.HTTPException.
        """
        url, crossed, lasts = target or request.url, bool(target), math.inf
        asked = _authority(request.url)
        for _ in range(_MOST_REDIRECTS + 1):
            secret = () if crossed else request.secret
            endpoint = self._endpoint(request, url)
            status, headers, stream = self._send(endpoint, request, url, secret, deadline)
            address = _authority(url)[1]
            if status not in _REDIRECTS:
                via = str(endpoint.forwarder or "")
                return Answer(status, headers, stream, asked[1], address, crossed, url, lasts, via)
            stream.settle(deadline)
            url = _target(url, headers.get("Location", ""), f"{request.what}: {address}")
            crossed = crossed or _authority(url) != asked
            said = headers.get("Cache-Control", ""), headers.get("Date", "")
            lasts = min(lasts, targets.life(url, *said, datetime.now(UTC)))
        raise Malformed(f"{request.what}: {asked[1]} redirects more than {_MOST_REDIRECTS} times")

    def _endpoint(self, request: Request, url: str) -> Endpoint:
        scheme, address = _authority(url)
        host, port = addresses.split(address)[0], addresses.port_of(address, scheme)
        context = self._contexts.of(request.tls) if scheme == "https" else None
        proxy = self._proxies.before(scheme, host, port)
        if proxy is None:
            return Endpoint(host, port, context)
        return Endpoint(host, port, context, Via(proxy, self._contexts.of(NO_TLS) if proxy.scheme == "https" else None))

    def _send(
        self, endpoint: Endpoint, request: Request, url: str, secret: Headers, deadline: Deadline
    ) -> tuple[int, http.client.HTTPMessage, Stream]:
        idle = self._pool.take(endpoint)
        if idle is not None:
            try:
                return self._exchange(idle, request, url, secret, deadline)
            except (ConnectionError, ssl.SSLError) as error:
                # The server closed it just as we wrote. Everything asked here may be asked twice.
                log.debug("retry request host=%s cause=%s", endpoint.host, type(error).__name__)
        fresh = self._pool.open(endpoint, Deadline(deadline.left(request.connect)))
        return self._exchange(fresh, request, url, secret, deadline)

    def _exchange(
        self, connection: Connection, request: Request, url: str, secret: Headers, deadline: Deadline
    ) -> tuple[int, http.client.HTTPMessage, Stream]:
        lent = tuple((name, text) for name, text in secret if name.lower() not in _NEVER_FROM_OUTSIDE)
        target, ours = _as_written(connection.endpoint, url)
        try:
            headers = (*_OURS, *ours, *request.headers, *lent)
            response = connection.request(request.method, target, headers, deadline.left(request.silence))
        except BaseException:
            self._pool.discard(connection)
            raise
        proxy = connection.endpoint.forwarder
        if response.status == _PROXY_REFUSES and proxy is not None:
            self._pool.discard(connection)
            raise refusal.by_proxy(proxy, response.status, _authority(url)[1])
        stream = Stream(self._pool, connection, response, bodiless=request.method == "HEAD")
        return response.status, response.headers, stream


def _as_written(endpoint: Endpoint, url: str) -> tuple[str, Headers]:
    """What the request's first line asks for, and what the proxy that reads it wants to be told (RFC 9112 §3.2)."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if endpoint.forwarder is None:
        return target, ()
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{target}", endpoint.forwarder.headers


def _authority(url: str) -> tuple[str, str]:
    """Scheme and host:port, the port always written, so that equal places compare equal."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2].lower()
    return parts.scheme, addresses.join(addresses.split(address)[0], addresses.port_of(address, parts.scheme))


def _target(url: str, location: str, what: str) -> str:
    try:
        target = urljoin(url, quote(location, safe="%/:=&?~#+!$,;'@()*[]")).partition("#")[0]
        scheme, address = _authority(target)
    except (ValueError, KeyError, InvalidInput) as error:
        raise Malformed(f"{what} redirects to nowhere one could ask", _MISLED) from error
    if not location:
        raise Malformed(f"{what} redirects without saying where", _MISLED)
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise Malformed(f"{what} redirects from https to plain http at {address}", _MISLED)
    return target
