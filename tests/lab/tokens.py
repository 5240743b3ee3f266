"""A token server: the other half of a registry's Bearer authentication.

Source: distribution's "Token Authentication Specification", and its JWT form.

Runs in a thread of the test. `requests` keeps what it was asked, so a test can say who asked for what and with which
credentials.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.lab.ca import Authority, Pair

ISSUER = "lab tokens"
_LIFE = 300


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """`user` is empty for an anonymous one; `status` is what it was answered."""

    user: str
    scopes: tuple[str, ...]
    status: int


@dataclass
class Rules:
    """Who may pull what.

    `users` gives each one's password, `private` the repositories each may pull (one not named there may pull all), and
    `anonymous` whether tokens are given to those who say no name.
    """

    users: dict[str, str] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)
    anonymous: bool = False


class TokenServer:
    """`with TokenServer(authority, rules) as tokens:` then `Registry(..., tokens=tokens)`."""

    service = "lab registry"

    def __init__(self, authority: Authority, rules: Rules) -> None:
        self.rules = rules
        self.roots = authority.certificate
        self.requests: list[TokenRequest] = []
        self._pair: Pair = authority.issue("tokens")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Answers,), {"tokens": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, name="lab-tokens", daemon=True)

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def token(self, user: str, access: list[dict[str, Any]]) -> str:
        """A signed token; the certificate travels in it (x5c) and is checked against `roots` by the registry."""
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._pair.der()).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": self.service,
            "exp": now + _LIFE,
            "nbf": now - 10,
            "iat": now,
            "jti": f"{now}-{len(self.requests)}",
            "access": access,
        }
        signed = f"{_encoded(header)}.{_encoded(claims)}"
        r, s = decode_dss_signature(self._pair.private_key().sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def may(self, user: str, repository: str) -> bool:
        return user not in self.rules.private or repository in self.rules.private[user]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answers(BaseHTTPRequestHandler):
    tokens: ClassVar[TokenServer]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._answer(tuple(" ".join(query.get("scope", [])).split()), self._basic())

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
        said = (form["username"][0], form.get("password", [""])[0]) if "username" in form else None
        self._answer(tuple(" ".join(form.get("scope", [])).split()), said)

    def _answer(self, scopes: tuple[str, ...], said: tuple[str, str] | None) -> None:
        rules = self.tokens.rules
        user = said[0] if said else ""
        is_known = rules.users.get(user) == said[1] if said else rules.anonymous
        if not is_known:
            self._send(
                401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]}, user, scopes
            )
            return
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            repository, _, _actions = rest.rpartition(":")
            if self.tokens.may(user, repository):
                access.append({"type": kind, "name": repository, "actions": ["pull"]})
        token = self.tokens.token(user, access)
        self._send(200, {"token": token, "access_token": token, "expires_in": _LIFE}, user, scopes)

    def _basic(self) -> tuple[str, str] | None:
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None
        user, _, password = base64.b64decode(credentials).decode().partition(":")
        return user, password

    def _send(self, status: int, document: dict[str, Any], user: str, scopes: tuple[str, ...]) -> None:
        self.tokens.requests.append(TokenRequest(user, scopes, status))
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Kept in `requests` instead."""


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _encoded(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())
