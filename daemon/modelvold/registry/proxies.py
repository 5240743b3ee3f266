"""Which proxy stands between us and a host, as the environment says, read as containerd reads it. Pure.

Rules (golang.org/x/net/http/httpproxy, of which containerd's transport asks):

- HTTPS_PROXY is for hosts spoken to with TLS, HTTP_PROXY for the others; upper case goes before lower case, and what is
  empty is not there. HTTP_PROXY says nothing where REQUEST_METHOD is set: under CGI whoever asks could have set it.
- NO_PROXY is a list with commas: `*`; an address or a network; `example.com` and what is below it; `.example.com` or
  `*.example.com` for what is below it alone; each but a network with `:port`, for that port. What cannot be understood in
  it exempts nothing.
- This machine itself is never spoken to by a proxy.

Unlike Go, which goes on without a proxy whose URL it cannot read, we refuse: requests would go where nobody wants them.
A proxy's URL may hold a password, so none of it is repeated.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from modelvold.errors import Failure, InvalidInput
from modelvold.registry import address as addresses

_HTTP, _HTTPS, _NONE = ("HTTP_PROXY", "http_proxy"), ("HTTPS_PROXY", "https_proxy"), ("NO_PROXY", "no_proxy")
_SCHEMES = frozenset({"http", "https"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[^:\[\]]*)")
_FORM = "not of the form http(s)://[user:password@]host[:port]"
_MEND = "mend it in the daemon's environment; in a password / is written %2F, ? %3F, # %23 and @ %40"
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxy:
    """`scheme` is how it is spoken to itself, `variable` names it in the environment, `authorization` is what it wants to be
    told.
    """

    scheme: str
    host: str
    port: int
    variable: str
    authorization: str = field(default="", repr=False)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """For the proxy alone."""
        return (("Proxy-Authorization", self.authorization),) if self.authorization else ()

    def __str__(self) -> str:
        return f"{self.scheme}://{addresses.join(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Exemption:
    """One entry of NO_PROXY: a network (an address is one of its own), or the names that end in `suffix`, and with `itself`
    the name without the suffix's dot. `port` empty: any. The default is `*`.
    """

    network: _Network | None = None
    suffix: str = ""
    itself: bool = False
    port: str = ""

    def covers(self, host: str, ip: _Ip | None, port: int) -> bool:
        if self.port not in {"", str(port)}:
            return False
        if self.network is not None:
            return ip is not None and ip in self.network
        return host.endswith(self.suffix) or (self.itself and host == self.suffix[1:])


@dataclass(frozen=True, slots=True)
class Proxies:
    """Those for hosts without and with TLS; the default is none."""

    http: Proxy | None = None
    https: Proxy | None = None
    exempt: tuple[Exemption, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """Raises InvalidInput, naming the variable, for a proxy that we cannot speak to."""
        return cls(
            None if environ.get("REQUEST_METHOD") else _proxy(environ, _HTTP),
            _proxy(environ, _HTTPS),
            _exemptions(environ.get(_named(environ, _NONE), "")),
        )

    def before(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The one that `host` (in lower case, an IPv6 address without brackets) is asked by; None: it is asked itself."""
        proxy = self.https if scheme == "https" else self.http
        ip = _ip(host)
        if proxy is None or host == "localhost" or (ip is not None and ip.is_loopback):
            return None
        return None if any(one.covers(host, ip, port) for one in self.exempt) else proxy


NO_PROXIES = Proxies()


def _named(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((name for name in names if environ.get(name)), "")


def _proxy(environ: Mapping[str, str], names: tuple[str, ...]) -> Proxy | None:
    variable = _named(environ, names)
    if not variable:
        return None
    scheme, separator, rest = environ[variable].partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", scheme)
    if scheme not in _SCHEMES and _SCHEME.fullmatch(scheme):
        raise InvalidInput(f"{variable}: {scheme} proxies are not supported", "name an http:// or an https:// proxy")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        user, at, address = parts.netloc.rpartition("@")
        host = addresses.split(address)[0]
        port = addresses.port_of(address, scheme)
    except (ValueError, KeyError, Failure):
        host = ""
    if not host or not rest.isprintable() or " " in rest or "@" in parts.path + parts.query + parts.fragment:
        raise InvalidInput(f"{variable}: {_FORM}", _MEND)
    return Proxy(scheme, host, port, variable, _basic(user) if at else "")


def _basic(user: str) -> str:
    name, _, password = user.partition(":")
    return f"Basic {base64.b64encode(f'{unquote(name)}:{unquote(password)}'.encode()).decode()}"


def _exemptions(text: str) -> tuple[Exemption, ...]:
    entries = [entry for one in text.split(",") if (entry := one.strip().lower())]
    return (Exemption(),) if "*" in entries else tuple(made for one in entries if (made := _exemption(one)))


def _exemption(entry: str) -> Exemption | None:
    form = _HOST_AND_PORT.fullmatch(entry)
    name, port = ((form["six"] or form["host"]), form["port"]) if form else (entry, "")
    network = _network(entry if "/" in entry else name)
    if network is not None:
        return Exemption(network, port=port if "/" not in entry else "")
    if not name:
        return None
    itself = not name.startswith((".", "*."))
    suffix = f".{name}" if itself else name.removeprefix("*")
    return Exemption(suffix=_ascii(suffix), itself=itself, port=port)


def _network(entry: str) -> _Network | None:
    """Of an address, or of an address with `/` and how many bits."""
    address, slash, bits = entry.partition("/")
    ip = _ip(address)
    if ip is None or (slash and not bits.isdecimal()):
        return None
    try:
        return ipaddress.ip_network(f"{ip}/{bits}" if slash else str(ip), strict=False)
    except ValueError:
        return None


def _ip(host: str) -> _Ip | None:
    """An IPv4 address written as an IPv6 one is an IPv4 address."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _ascii(suffix: str) -> str:
    try:
        return suffix if suffix.isascii() else f".{suffix[1:].encode('idna').decode()}"
    except UnicodeError:
        return suffix
