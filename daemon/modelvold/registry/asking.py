"""One question to one host, and the answer if it is one that is good for the question.

Ranges of a blob that a host keeps elsewhere are asked for there, for as long as the address it gave holds. The host is asked
again, in the same breath, when the address no longer leads to the blob: so nobody who asks here sees the difference.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from modelvold.errors import Malformed
from modelvold.registry import question as questions
from modelvold.registry.authorizer import Authorizer, failure_of
from modelvold.registry.credentials import Credentials
from modelvold.registry.deadline import Deadline
from modelvold.registry.failover import Failover
from modelvold.registry.hosts_toml import Host
from modelvold.registry.question import Question
from modelvold.registry.shortcuts import Place, Shortcuts
from modelvold.registry.wire import Answer, Request, Wire

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: RFC 6585. Of a blob's range it counts who asks, and not for which; a 503 may be about one blob, and what was said of a document (which
#: Docker Hub counts, as it does not blobs) says nothing of ranges.
_TOO_MANY = 429
#: A signature that has ended (some storage says 400), or a blob that has moved: the registry knows where to.
_LED_ASTRAY = frozenset({400, 401, 403, 404, 410})


class Asking:
    """Thread-safe. `connect` and `silence` in seconds: to connect where hosts.toml says nothing; of silence in an answer."""

    def __init__(
        self, wire: Wire, credentials: Credentials, failover: Failover, *, connect: float, silence: float
    ) -> None:
        self._wire = wire
        self._credentials = credentials
        self._authorizer = Authorizer(wire, credentials)
        self._failover = failover
        self._shortcuts = Shortcuts()
        self._connect = connect
        self._silence = silence

    def ask(self, method: str, question: Question, host: Host, deadline: Deadline) -> Answer:
        """An answer of a status that is good for the question; any other is raised as what it means."""
        answer = self._authorizer.ask(host, self._request(method, question, host), question.identity, deadline)
        if answer.status not in question.good:
            failure = failure_of(answer, question.what, deadline)
            if question.is_range and answer.status == _TOO_MANY and not answer.crossed:
                self._failover.on_limit(host, failure, question.what)
            raise failure
        return answer

    def ask_for_range(
        self, question: Question, host: Host, deadline: Deadline, check: Callable[[Answer], _T]
    ) -> tuple[Answer, _T]:
        """GET, from where the host sent us for this blob before, else from the host; and what `check` makes of the answer. It raises
        Malformed for one that is not to be believed."""
        place = self._place(question, host)
        target = self._shortcuts.of(place)
        straight = self._straight(target, question, host, deadline, check) if target else None
        if straight is not None:
            return straight
        if target:
            self._shortcuts.forget(place, target)
        answer = self.ask("GET", question, host, deadline)
        checked = _checked(answer, check)
        if answer.crossed and answer.lasts > 0:
            self._shortcuts.keep(place, answer.url, answer.lasts)
        return answer, checked

    def on_broken_range(self, question: Question, host: Host, answer: Answer) -> None:
        """An answer that began well ended badly; the next question goes elsewhere first, and the host may know of a better place."""
        self._failover.on_broken_answer(host)
        self._shortcuts.forget(self._place(question, host), answer.url)

    def _straight(
        self, target: str, question: Question, host: Host, deadline: Deadline, check: Callable[[Answer], _T]
    ) -> tuple[Answer, _T] | None:
        """Ask `target`. None where the host is to be asked instead: half the time is left for that. Raises what a storage says of
        itself, which asking the host again would not mend."""
        request = replace(self._request("GET", question, host), tls=host.tls)
        try:
            answer = self._wire.follow(request, deadline.share(2), target=target)
            if answer.status in question.good:
                return answer, _checked(answer, check)
        except (OSError, http.client.HTTPException, Malformed) as error:
            log.debug("leave storage host=%s cause=%s", host, type(error).__name__)
            return None
        failure = failure_of(answer, question.what, deadline)
        if answer.status in _LED_ASTRAY:
            return None
        self._shortcuts.forget(self._place(question, host), target)
        raise failure

    def _place(self, question: Question, host: Host) -> Place:
        identity = question.identity
        brought = self._credentials.remembered(identity.repository) if identity.remembered else ()
        return Place(host, identity, question.path, brought)

    def _request(self, method: str, question: Question, host: Host) -> Request:
        repository = question.identity.repository
        namespace = f"?ns={repository.host}" if questions.is_proxy(host, repository) else ""
        return Request(
            method,
            f"{host}{host.path}/{repository.path}/{question.path}{namespace}",
            question.what,
            headers=question.headers,
            connect=host.dial_timeout or self._connect,
            silence=self._silence,
        )


def _checked(answer: Answer, check: Callable[[Answer], _T]) -> _T:
    try:
        return check(answer)
    except BaseException:
        answer.stream.discard()
        raise
