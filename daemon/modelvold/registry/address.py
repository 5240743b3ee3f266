"""Addresses of registries, `host[:port]`: taken apart, compared, recognised as this machine's own. Pure."""

from __future__ import annotations

import ipaddress
import re

from modelvold.errors import InvalidInput

_FORM = re.compile(r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_SCHEME_PORTS = {"http": 80, "https": 443}


def split(address: str) -> tuple[str, int | None]:
    """Host in lower case, an IPv6 address without its brackets, and the port where one is written. Raises
    InvalidInput.
    """
    form = _FORM.fullmatch(address)
    port = int(form["port"]) if form and form["port"] else None
    if form is None or (port is not None and not 0 < port < 1 << 16):
        raise InvalidInput(f"registry host {address[:300]!r}: not of the form host[:port]")
    return form["host"].strip("[]").lower(), port


def port_of(address: str, scheme: str) -> int:
    """The port written, else the scheme's own."""
    return split(address)[1] or _SCHEME_PORTS[scheme]


def join(host: str, port: int) -> str:
    """The two that `split` gives, as one writes them in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether `address` can only be this machine: `localhost`, 127.0.0.0/8, [::1]."""
    host, _ = split(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_same_listener(address: str, listener: str, scheme: str) -> bool:
    """Whether `address` (with `scheme`'s port if it names none) reaches `listener`; localhost is 127.0.0.1 and
    [::1].
    """
    host, listening = split(address)[0], split(listener)[0]
    names = {"localhost", "127.0.0.1", "::1"} if "localhost" in {host, listening} else {host}
    return port_of(address, scheme) == port_of(listener, "http") and {host, listening} <= names
