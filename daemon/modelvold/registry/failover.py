"""One question, asked of a registry's hosts in turn until one answers.

The order is hosts.toml's, hosts that failed lately last. Any failure leads to the next host: a mirror that does not
know us or the model is as good as none. The failure told in the end is that of the registry's own server where it was
asked, for only its "not found" means that there is nothing.

A question that its asker will ask `again` for as long as somebody waits is different in two things. What may pass is told before
what will not, for the host that could not be asked may have what the others lack. And a host that was asked too often is left alone
for as long as it said.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import TypeVar

from modelvold.errors import Failure, Mismatch, Unreachable
from modelvold.oci.reference import Repository
from modelvold.registry import address as addresses
from modelvold.registry import refusal
from modelvold.registry.deadline import Deadline
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import Host
from modelvold.registry.standing import Standing
from modelvold.registry.tls import PlainAnswerError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Of what a log line was written; more than a node's models and mirrors.
_MOST_LEFT = 1024


class Failover:
    """Thread-safe. `facade` is our own listener's host:port, never asked."""

    def __init__(self, hosts: Hosts, facade: str | None) -> None:
        self._hosts = hosts
        self._facade = facade
        self._standing = Standing()
        self._left: OrderedDict[tuple[str, Repository], type[Failure]] = OrderedDict()
        self._lock = threading.Lock()  # guards _left

    def first(
        self,
        repository: Repository,
        capability: str,
        what: str,
        deadline: Deadline,
        ask: Callable[[Host, Deadline], _T],
        *,
        avoid: AbstractSet[str] = frozenset(),
        again: bool = False,
    ) -> _T:
        """What `ask` gets from the first host of the repository's registry that answers; each has its share of the time left.

        Raises the Failure of the server, or of the last mirror where no server was asked; Mismatch where all are to be `avoid`ed.
        """
        failures: list[tuple[Host, Failure]] = []
        spoke_plain = False
        hosts = self._hosts_for(repository, capability, what, avoid)
        for n, host in enumerate(hosts):
            if host.after_plain_answer and not spoke_plain:
                continue
            failure = self._held(host, what) if again else None
            if failure is None:
                try:
                    got = ask(host, deadline.share(len(hosts) - n))
                except (OSError, http.client.HTTPException) as error:
                    spoke_plain = _is_plain(error, host)
                    failure = refusal.of_error(error, what, host.address)
                except Failure as said:
                    spoke_plain = False
                    failure = said
                else:
                    self._succeed(host, repository)
                    return got
                if isinstance(failure, Unreachable) and not spoke_plain:
                    self._standing.fail(host)
            failures.append((host, failure))
            if n + 1 < len(hosts):  # the last one's failure is told by whoever gets it
                self._leave(host, repository, failure)
        if not failures:
            remedy = f"give a host in its hosts.toml the capability {capability!r}"
            raise Unreachable(f"{what}: no host of {repository.host} may {capability}", remedy)
        raise _told(failures, again=again)

    def on_broken_answer(self, host: Host) -> None:
        """An answer that began well ended badly; the next question goes elsewhere first."""
        self._standing.fail(host)

    def on_limit(self, host: Host, failure: Failure, what: str) -> None:
        """It said of `what` that it was asked too often."""
        if isinstance(failure, Unreachable) and failure.wait:
            self._standing.hold(host, failure.wait, failure.message.removeprefix(f"{what}: "), failure.remedy)

    def addresses(self, namespace: str, capability: str) -> frozenset[str]:
        """Of the hosts that may be asked. Raises InvalidInput."""
        return frozenset(host.address for host in self._able(namespace, capability))

    def _able(self, namespace: str, capability: str) -> tuple[Host, ...]:
        able = self._hosts.upstream_of(namespace, self._facade)
        return tuple(host for host in able if capability in host.capabilities)

    def _hosts_for(
        self, repository: Repository, capability: str, what: str, avoid: AbstractSet[str]
    ) -> tuple[Host, ...]:
        able = self._able(repository.host, capability)
        kept = tuple(host for host in able if host.address not in avoid)
        if able and not kept:
            suspects = ", ".join(dict.fromkeys(host.address for host in able))
            raise Mismatch(
                f"{what}: wrong bytes came from {suspects}, and no other host has it", "ask whoever runs the registry"
            )
        return self._standing.order(kept)

    def _held(self, host: Host, what: str) -> Failure | None:
        hold = self._standing.held(host)
        return Unreachable(f"{what}: {hold.said}", hold.remedy, wait=hold.left) if hold else None

    def _succeed(self, host: Host, repository: Repository) -> None:
        self._standing.succeed(host)
        with self._lock:
            self._left.pop((host.address, repository), None)

    def _leave(self, host: Host, repository: Repository, failure: Failure) -> None:
        """One line, and not one for each range that the host does not have."""
        key = host.address, repository
        with self._lock:
            is_news = self._left.get(key) is not type(failure)
            self._left[key] = type(failure)
            while len(self._left) > _MOST_LEFT:
                self._left.popitem(last=False)
        if is_news:
            log.info("leave host=%s mirror=%s cause=%s", host, host.mirror, failure.message)


def _told(failures: list[tuple[Host, Failure]], *, again: bool) -> Failure:
    passing = [(host, failure) for host, failure in failures if isinstance(failure, Unreachable)] if again else []
    candidates = passing or failures
    return next((failure for host, failure in reversed(candidates) if not host.mirror), candidates[-1][1])


def _is_plain(error: BaseException, host: Host) -> bool:
    """Whether `host` itself answered without TLS, and not somebody it sent us to."""
    if not isinstance(error, PlainAnswerError):
        return False
    place = (addresses.split(host.address)[0], addresses.port_of(host.address, host.scheme))
    return (error.host, error.port) == place
