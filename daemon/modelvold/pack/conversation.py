"""One authenticated conversation with a registry that is pushed to, over `oras`.

Rules:
- Credentials go to the registry's own host and to the token server it names, never where an upload or a redirect
  leads besides.
- Every wait has an end, and a failure is told at once: `oras`'s own way of asking again sleeps for two minutes first.
- What the registry answers is read up to a bound, and of what it writes only the error code is repeated.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import oras.auth
import oras.provider
import requests
import urllib3.exceptions

from modelvold.errors import Failure, Forbidden, Malformed, NotFound, Refused
from modelvold.pack.adapter import TIMEOUTS, Adapter
from modelvold.registry import address as addresses
from modelvold.registry import refusal
from modelvold.registry.credentials import BasicCredentials
from modelvold.registry.hosts_toml import Host
from modelvold.registry.tls import Contexts

#: Seconds; nothing is copied for this answer.
_PING_ANSWER = 20.0
_LARGEST_ANSWER = 64 << 10
_MOST_REDIRECTS = 5
#: OpenSSL's names for a first answer that is no TLS record.
_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})
_REDIRECTS = frozenset({301, 302, 307, 308})

Body = bytes | Iterable[memoryview] | None


class PlainAnswer(Exception):
    """The host does not speak TLS."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Conversation:
    """Not thread-safe: every thread has its own. `what` names the push in errors."""

    def __init__(self, host: Host, credentials: BasicCredentials | None, what: str) -> None:
        self._host, self._credentials, self._what = host, credentials, what
        self.base = f"{host}{host.path}"
        self._registry = _Registry(host.address, insecure=host.scheme == "http", tls_verify=host.tls.verify)
        session = self._registry.session
        self._adapters = Adapter(Contexts().of(host.tls)), Adapter(None)
        session.mount("https://", self._adapters[0])
        session.mount("http://", self._adapters[1])
        session.auth = _as_it_is
        session.trust_env = not addresses.is_loopback(host.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._registry.session.close()

    def abort(self) -> None:
        """End what is under way, from any thread: it raises Unreachable there."""
        for adapter in self._adapters:
            adapter.abort()

    def open(self) -> None:
        """Learn how the registry wants to be told who asks. Raises Unreachable, Unauthorized, PlainAnswer."""
        try:
            response = self._registry.session.get(
                f"{self.base}/",
                headers=dict(self._host.headers),
                timeout=(TIMEOUTS[0], _PING_ANSWER),
                stream=True,
                allow_redirects=False,
                verify=self._host.tls.verify,
            )
        except requests.RequestException as error:
            if getattr(_cause(error), "reason", "") in _PLAIN:
                raise PlainAnswer from error
            raise self._failed(error) from error
        challenge = response.headers.get("WWW-Authenticate", "") if response.status_code == 401 else ""
        response.close()
        if challenge.lower().startswith("basic"):
            if self._credentials is None:
                raise refusal.of_status(401, self._what, self._host.address)
            self._use("basic")
        if self._credentials is not None:
            self._registry.auth.set_basic_auth(self._credentials.username, self._credentials.password)

    def send(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Body = None) -> Answer:
        """One request, and what redirects make of it. An iterable body is iterated anew for each. Raises
        Unreachable, Malformed.
        """
        for _ in range(_MOST_REDIRECTS):
            try:
                response = self._ask(method, url, dict(headers or {}), body)
            except requests.RequestException as error:
                raise self._failed(error) from error
            target = response.headers.get("Location", "")
            if response.status_code not in _REDIRECTS or not target:
                return _answer(response)
            response.close()
            url = self.follow(url, target)
        raise Malformed(f"{self._what}: {self._host.address} redirects without end", "ask whoever runs the registry")

    def follow(self, url: str, target: str) -> str:
        """Where a Location `target` in the answer of `url` leads. Raises Malformed when it leads out of TLS."""
        there = urljoin(url, target)
        if url.startswith("https:") and not there.startswith("https:"):
            raise Malformed(
                f"{self._what}: {self._host.address} leads from https to plain http", "its proxy is set up wrongly"
            )
        return there

    def refused(self, answer: Answer, doing: str) -> Failure:
        """What the answer means, if it is not what `doing` needs to go on."""
        code, host = refusal.code_in(answer.body), self._host.address
        said = f"{self._what}: {doing}: {host} answered {answer.status}{f' {code}' if code else ''}"
        if answer.status == 403:
            return Forbidden(said, "ask whoever runs the registry for the right to push to this repository")
        if answer.status == 404:
            return NotFound(said, "check the repository's name; some registries want it created first")
        if answer.status == 405:
            return Refused(said, "the registry takes no pushes; name another")
        if answer.status == 413:
            return Refused(
                said, "a proxy before the registry bounds what it lets through: raise its limit for request bodies"
            )
        if answer.status in {401, 429} or answer.status >= 500:
            return refusal.of_status(answer.status, f"{self._what}: {doing}", host, code=code)
        return Refused(said, "check the reference, and the scheme of the host in hosts.toml")

    def _ask(self, method: str, url: str, headers: dict[str, str], body: Any) -> requests.Response:
        if _origin(url) == _origin(self.base):
            own = {**dict(self._host.headers), **headers}
            try:
                answer: requests.Response = self._registry.do_request(url, method, data=body, headers=own, stream=True)
                return answer
            except (AttributeError, KeyError, TypeError) as error:
                challenge = f"{self._what}: {self._host.address} asks for credentials in a form that is not understood"
                raise Malformed(challenge, "ask whoever runs the registry") from error
        session: requests.Session = self._registry.session
        return session.request(
            method, url, data=body, headers=headers, stream=True, allow_redirects=False, verify=self._host.tls.verify
        )

    def _use(self, backend: str) -> None:
        registry = self._registry
        insecure = self._host.scheme == "http"
        registry.auth = oras.auth.get_auth_backend(
            backend, registry.session, insecure, tls_verify=self._host.tls.verify
        )

    def _failed(self, error: requests.RequestException) -> Failure:
        return refusal.of_error(_cause(error), self._what, self._host.address)


class _Registry(oras.provider.Registry):  # type: ignore[misc]
    """`oras`'s registry, asked once: with the credentials it has, after a 401 with those for what it names."""

    def do_request(  # noqa: PLR0917 (the base class's)
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> requests.Response:
        sent = {**(headers or {}), **self.auth.get_auth_header()}
        send = self._sender(url, method, data=data, json=json, stream=stream)
        response = send(sent)
        if response.status_code != 401 or not self._may_answer(response):
            return response
        # A token for less than this request needs, or one that ran out, is no use: `refresh` asks for another.
        with ExitStack() as stack:
            stack.callback(response.close)
            sent, changed = self.auth.authenticate_request(response, sent, refresh=True)
            if changed:
                return send(sent)
            stack.pop_all()
        return response

    def _sender(self, url: str, method: str, **request: Any) -> Callable[[dict[str, str]], requests.Response]:
        def send(headers: dict[str, str]) -> requests.Response:
            session: requests.Session = self.session
            return session.request(
                method, url, headers=headers, verify=self._tls_verify, allow_redirects=False, **request
            )

        return send

    def _may_answer(self, response: requests.Response) -> bool:
        """A password is not sent in clear by a registry that was itself reached over TLS."""
        challenge = response.headers.get("WWW-Authenticate", "")
        return challenge.lower().startswith("bearer") and (self.prefix == "http" or 'realm="http:' not in challenge)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps `requests` from putting what a .netrc says in place of our Authorization."""
    return request


def _answer(response: requests.Response) -> Answer:
    try:
        body = response.raw.read(_LARGEST_ANSWER, decode_content=True)
    except (OSError, urllib3.exceptions.HTTPError):  # the status is what counts
        body = b""
    finally:
        response.close()
    return Answer(response.status_code, response.headers, body)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _cause(error: BaseException) -> OSError | http.client.HTTPException:
    """The system's or OpenSSL's own error below what `requests` and `urllib3` made of it: their texts hold whole
    URLs.
    """
    seen: BaseException | None = error
    found: OSError | http.client.HTTPException = OSError(None, type(error).__name__)
    while seen is not None:
        if isinstance(seen, OSError | http.client.HTTPException) and not isinstance(seen, requests.RequestException):
            found = seen
        inner = getattr(seen, "reason", None) or next(iter(seen.args), None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
    return found


logging.getLogger("oras.logger").setLevel(
    logging.CRITICAL
)  # what it would say is said here, with the host and the next step
