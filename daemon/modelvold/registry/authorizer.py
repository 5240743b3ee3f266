"""One question to one host, with whatever the host wants to know first.

Lifecycle of a question: as the host's last challenge for this repository demands, else without a name; a 401 teaches
the challenge; then each of the credentials in turn, each renewed when it is refused (a token may have ended, a
program may know a newer password). Credentials are looked up only when a host asks for them.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from urllib.parse import quote, urlencode, urlsplit

from modelvold.errors import Failure, Forbidden, Malformed, Unauthorized
from modelvold.oci.reference import Repository
from modelvold.registry import address as addresses
from modelvold.registry import challenge as challenges
from modelvold.registry import refusal, tokens
from modelvold.registry.challenge import Challenge
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.deadline import Deadline
from modelvold.registry.hosts_toml import Host
from modelvold.registry.tokens import Grant, Token, Tokens
from modelvold.registry.wire import Answer, Headers, Request, Wire

_MOST_CHALLENGES = 4096
#: What a question is asked with in turn: what others had got, which may have ended one after the other, and two of its own.
_MOST_TOKENS, _MOST_NEW = 4, 2


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom to ask: `given` and nobody else; else what pods brought, if `remembered`; else the node."""

    repository: Repository
    given: BasicCredentials | None = None
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    host: Host
    request: Request
    identity: Identity
    deadline: Deadline

    @property
    def names(self) -> tuple[str, ...]:
        """Under which names the node may have credentials for the host. A mirror gets none meant for the registry."""
        address = self.host.address
        return (address,) if self.host.mirror else tuple(dict.fromkeys((address, self.identity.repository.host)))

    @property
    def headers(self) -> Headers:
        """Those of hosts.toml that stay when we say who we are."""
        return tuple(header for header in self.host.headers if header[0].lower() != "authorization")


class Authorizer:
    """Thread-safe."""

    def __init__(self, wire: Wire, credentials: Credentials) -> None:
        self._wire = wire
        self._credentials = credentials
        self._tokens = Tokens()
        self._challenges: OrderedDict[tuple[Host, Repository], Challenge] = OrderedDict()
        self._lock = threading.Lock()  # guards _challenges

    def ask(self, host: Host, request: Request, identity: Identity, deadline: Deadline) -> Answer:
        """An answer of any status but the host's own 401. Its stream is the caller's to finish.

        Raises Unauthorized, what the token server's refusal means, and what `Wire.follow` raises.
        """
        question = _Question(host, replace(request, secret=host.headers, tls=host.tls), identity, deadline)
        challenge = self._known(question)
        if challenge is None:
            answer = self._wire.follow(question.request, deadline)
            if not _is_refused(answer):
                return answer
            challenge = self._learn(question, answer)
        return self._as_somebody(question, challenge)

    def _as_somebody(self, question: _Question, challenge: Challenge) -> Answer:
        """Ask as each that may be asked as; once more if credential programs may by now say something newer."""
        given = question.identity.given is not None
        while True:
            failure: Failure | None = None
            for credentials in self._candidates(question):
                try:
                    answer = self._as(credentials, question, challenge)
                except (Unauthorized, Forbidden) as refused:
                    failure = refused
                    continue
                if answer.status != 403 or answer.crossed:
                    return answer
                failure = failure_of(answer, question.request.what, question.deadline)
            if given or not self._credentials.renew(question.names):
                break
        trouble = "" if given else self._credentials.trouble(question.names)
        if isinstance(failure, Unauthorized) and trouble:
            raise refusal.unauthorized(failure.message, trouble)
        raise failure or refusal.unauthorized(f"{question.request.what}: {question.host.address} wants credentials")

    def _as(self, credentials: BasicCredentials | None, question: _Question, challenge: Challenge) -> Answer:
        """Ask as `credentials`, and again with a new token if the one we had is refused, and once more if that one is: it may have
        ended on the way. Raises Unauthorized."""
        new = 0  # how many of those refused had been asked for just now
        for _ in range(_MOST_TOKENS):
            grant = _grant(challenge, credentials, question.identity.repository)
            authorization, is_new = self._authorization(grant, question)
            secret = (*question.headers, ("Authorization", authorization))
            answer = self._wire.follow(replace(question.request, secret=secret), question.deadline)
            if not _is_refused(answer):
                return answer
            challenge = self._learn(question, answer)
            new += is_new
            if grant.realm:
                self._tokens.drop(grant, authorization.removeprefix("Bearer "))
            elif challenge.scheme == "basic":
                break
            if new == _MOST_NEW:
                break
        raise refusal.of_status(401, question.request.what, question.host.address)

    def _candidates(self, question: _Question) -> Iterator[BasicCredentials | None]:
        identity = question.identity
        if identity.given is not None:
            yield identity.given
            return
        anonymous = True
        brought = self._credentials.remembered(identity.repository) if identity.remembered else ()
        for credentials in chain(brought, self._credentials.of_node(question.names, identity.repository.path)):
            anonymous = False
            yield credentials
        if anonymous:
            yield None

    def _authorization(self, grant: Grant, question: _Question) -> tuple[str, bool]:
        """And whether it was asked for just now."""
        if not grant.realm:
            if grant.credentials is None:
                address = question.host.address
                raise refusal.unauthorized(f"{question.request.what}: {address} wants a user name and password")
            return _basic(grant.credentials), True
        given: list[Token] = []

        def ask() -> Token:
            given.append(self._ask_for_token(grant, question))
            return given[0]

        return f"Bearer {self._tokens.get(grant, ask, question.deadline)}", bool(given)

    def _ask_for_token(self, grant: Grant, question: _Question) -> Token:
        """GET the realm, as `hosts.toml` says to speak to the host itself: its TLS and headers hold here too."""
        what, address = question.request.what, question.host.address
        secret = question.headers
        if grant.credentials is not None:
            secret = (*secret, ("Authorization", _basic(grant.credentials)))
        accept = (("Accept", "application/json"),)
        url = _realm(grant, question.host, what)
        answer = self._wire.follow(
            replace(question.request, method="GET", url=url, headers=accept, secret=secret), question.deadline
        )
        body = answer.stream.settle(question.deadline)
        if answer.status == 200:
            return tokens.parse(body, f"{what}: {address}")
        # To a token server that was told no name, "forbidden" can only mean "log in".
        status = 401 if answer.status == 403 and grant.credentials is None else answer.status
        server = f"{address}'s token server {answer.address}"
        raise refusal.of_status(status, what, server, code=refusal.code_in(body), wait=_wait_in(answer))

    def _known(self, question: _Question) -> Challenge | None:
        with self._lock:
            return self._challenges.get((question.host, question.identity.repository))

    def _learn(self, question: _Question, answer: Answer) -> Challenge:
        answer.stream.settle(question.deadline)
        said = challenges.choose(challenges.parse(answer.headers.get_all("WWW-Authenticate") or ()))
        if said is None:
            cause = "answered 401 and names no way to log in that we know"
            raise refusal.unauthorized(f"{question.request.what}: {question.host.address} {cause}")
        place = (question.host, question.identity.repository)
        with self._lock:
            self._challenges[place] = said
            self._challenges.move_to_end(place)
            while len(self._challenges) > _MOST_CHALLENGES:
                self._challenges.popitem(last=False)
        return said


def failure_of(answer: Answer, what: str, deadline: Deadline) -> Failure:
    """What an answer other than the one hoped for means; its stream is finished."""
    body = answer.stream.settle(deadline)
    wait = _wait_in(answer)
    # Where a proxy forwarded it, nobody can tell whose word it is.
    address = f"{answer.address} through the proxy {answer.via}" if answer.via else answer.address
    if answer.crossed:
        return refusal.of_redirected(answer.status, what, answer.asked, address, wait=wait)
    return refusal.of_status(answer.status, what, address, code=refusal.code_in(body), wait=wait)


def _wait_in(answer: Answer) -> float:
    return refusal.wait_in(answer.headers.get("Retry-After", ""), datetime.now(UTC))


def _is_refused(answer: Answer) -> bool:
    return answer.status == 401 and not answer.crossed


def _grant(challenge: Challenge, credentials: BasicCredentials | None, repository: Repository) -> Grant:
    if challenge.scheme == "basic":
        return Grant("", "", "", credentials)
    scope = challenges.pull_scope(challenge, repository.path)
    return Grant(challenge.realm, challenge.service, scope, credentials)


def _basic(credentials: BasicCredentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _realm(grant: Grant, host: Host, what: str) -> str:
    """The token server's URL. A registry reached by TLS does not make us say a password in the clear."""
    remedy = "the registry is set up wrongly"
    try:
        parts = urlsplit(grant.realm)
        loopback = addresses.is_loopback(parts.netloc)
        good = parts.scheme in {"http", "https"}
    except (ValueError, Failure) as error:
        raise Malformed(f"{what}: {host.address} names a token server that is no URL", remedy) from error
    if not good or (host.scheme == "https" and parts.scheme == "http" and not loopback):
        raise Malformed(f"{what}: {host.address} names a token server that is not https", remedy)
    query = urlencode([(key, text) for key, text in (("service", grant.service), ("scope", grant.scope)) if text])
    path, before = (quote(part, safe="%/:=&~+!$,;'@()*?") for part in (parts.path or "/", parts.query))
    return f"{parts.scheme}://{parts.netloc}{path}?{before}{'&' if before else ''}{query}"
