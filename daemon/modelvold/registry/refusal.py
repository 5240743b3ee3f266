"""A registry's refusal, and a connection's failure, as the nouns of `errors`. Pure.

Texts name the thing, the host and the cause. Of what the registry wrote only its error code is repeated: messages may
hold addresses with signatures in them, and are not ours to vouch for.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from modelvold.errors import Failure, Forbidden, Malformed, NotFound, Unauthorized, Unreachable
from modelvold.registry.proxies import Proxy

_CODE = re.compile(r"[A-Za-z_]{1,64}")
_LOG_IN = (
    "run `docker login` and name its config.json as `[registry] docker_config`, or give the pod an image pull secret"
)
_USUALLY = "authenticated pulls usually have a higher limit"
_LATER = "it is asked again; if it lasts, ask whoever runs the registry"
_CHECK_HOST = "check the host's name, the network, and hosts.toml"
#: Seconds. A registry may ask for an hour, but whoever reads waits a minute: within that it is asked a second time.
LONGEST_WAIT = 30.0
#: A proxy that counts wrong passwords locks the account, and what it forbids only a person allows.
_BY_HAND_SECONDS = 15.0
#: What storage says that is more than a passing word about the address we were sent to with: signatures end, some of them with 400.
_STORAGE_MEANS = frozenset({404, 408, 416, 429})

_STATUSES: dict[int, tuple[type[Failure], str]] = {
    403: (Forbidden, "ask whoever runs the registry for the right to pull it"),
    404: (NotFound, "check the reference's spelling"),
    416: (Malformed, "the producer must push it again"),
}
_CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "TLS: the certificate is not trusted"),
    (ssl.SSLError, "TLS"),
    (TimeoutError, "no answer in time"),
    (socket.gaierror, "the name cannot be resolved"),
    (http.client.RemoteDisconnected, "it closed the connection without an answer"),
    (http.client.IncompleteRead, "the answer ended early"),
    (http.client.HTTPException, "it does not answer in HTTP"),
)


class ProxyError(OSError):
    """The way to a host does not lead through its proxy. `remedy` is the next step; `wait` for how many seconds asking
    again is no use.
    """

    def __init__(self, cause: str, remedy: str, wait: float = 0.0) -> None:
        super().__init__(cause)
        self.cause, self.remedy, self.wait = cause, remedy, wait


class _Error(msgspec.Struct):
    code: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def code_in(document: bytes) -> str:
    """The first error code of an OCI error body (distribution-spec "Error Codes"); empty if there is none."""
    try:
        errors = msgspec.json.decode(document, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return errors[0].code if errors and _CODE.fullmatch(errors[0].code) else ""


def of_status(status: int, what: str, host: str, *, code: str = "", wait: float = 0.0, trouble: str = "") -> Failure:
    """What a `status` other than success means. `wait`: for how many seconds it asks to be left alone; `trouble`:
    why credentials could not be looked up.
    """
    said = f"{what}: {host} answered {status}{f' {code}' if code else ''}"
    if status == 401:
        return unauthorized(said, trouble)
    if status == 416:
        said += ": the blob is shorter than the manifest says, a size that lies"
    if status in {408, 429} or status >= 500:
        said += ", too many requests" if status == 429 else ""
        said += f", and asks to wait {wait:.0f} s" if wait else ""
        return Unreachable(said, _USUALLY if status == 429 else _LATER, wait=min(wait, LONGEST_WAIT))
    noun, remedy = _STATUSES.get(status, (Malformed, "check the reference, and that the host is an OCI registry"))
    return noun(said, remedy)


def unauthorized(said: str, trouble: str = "") -> Unauthorized:
    return Unauthorized(f"{said}{f' ({trouble})' if trouble else ''}", _LOG_IN)


def of_redirected(status: int, what: str, host: str, target: str, *, wait: float = 0.0) -> Failure:
    """A refusal by a host that the registry sent us to. Nobody's credentials were shown there, so it is the registry's
    trouble: asked again, it sends us there with a new signature.
    """
    if status in _STORAGE_MEANS or status >= 500:
        return of_status(status, what, f"{target} (redirected from {host})", wait=wait)
    return Unreachable(f"{what}: {host} redirects to {target}, which answered {status}", _LATER)


def by_proxy(proxy: Proxy, status: int, place: str) -> ProxyError:
    """What the `status` means with which `proxy` answered, asked for the way to `place` (host:port)."""
    said, around = f"the proxy {proxy} answered {status}", f"name {place} in NO_PROXY if it can be reached without"
    if status == 407:
        known = bool(proxy.authorization)
        cause = "the user name and password are wrong" if known else "it wants a user name and password"
        remedy = f"write the right ones into {proxy.variable}, as http://user:password@host:port"
        return ProxyError(f"{said}: {cause}", remedy, _BY_HAND_SECONDS)
    if status < 500:
        return ProxyError(
            f"{said} for {place}", f"ask whoever runs the proxy to allow it, or {around}", _BY_HAND_SECONDS
        )
    return ProxyError(f"{said} for {place}", f"it is asked again; if it lasts, ask whoever runs the proxy, or {around}")


def wait_in(header: str, now: datetime) -> float:
    """The seconds that a Retry-After asks for (RFC 9110 §10.2.3: a number, or a date); 0 where it says nothing that can be
    understood."""
    if re.fullmatch(r"[0-9]{1,9}", header.strip()):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except (ValueError, IndexError, TypeError, OverflowError):
        return 0.0
    return max(0.0, ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds())


def of_error(error: OSError | http.client.HTTPException, what: str, host: str) -> Unreachable:
    """The connection failed, or what came over it was not HTTP."""
    if isinstance(error, ProxyError):
        return Unreachable(f"{what}: {host}: {error.cause}", error.remedy, wait=error.wait)
    return Unreachable(f"{what}: {host}: {cause(error)}", _CHECK_HOST)


def cause(error: OSError | http.client.HTTPException) -> str:
    """In words, without anything the other side sent."""
    words = next((words for kind, words in _CAUSES if isinstance(error, kind)), "")
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{words}: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"{words}: {error.reason or 'the handshake failed'}"
    return words or (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
