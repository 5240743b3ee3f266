"""One question, asked of a registry's hosts in turn until one answers.

The order is hosts.toml's, hosts that failed lately last. Any failure leads to the next host: a mirror that does not
know us or the model is as good as none. The failure told in the end is that of the registry's own server where it was
asked, for only its "not found" means that there is nothing.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Callable
from typing import TypeVar

from modelvold.errors import Failure, Unreachable
from modelvold.registry import address as addresses
from modelvold.registry import refusal
from modelvold.registry.deadline import Deadline
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import Host
from modelvold.registry.standing import Standing
from modelvold.registry.tls import PlainAnswerError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Failover:
    """Thread-safe. `facade` is our own listener's host:port, never asked."""

    def __init__(self, hosts: Hosts, facade: str | None) -> None:
        self._hosts = hosts
        self._facade = facade
        self._standing = Standing()

    def first(
        self, namespace: str, capability: str, what: str, deadline: Deadline, ask: Callable[[Host, Deadline], _T]
    ) -> _T:
        """What `ask` gets from the first host of `namespace` that answers; each has its share of the time left.

        Raises the Failure of the server, or of the last mirror where no server was asked.
        """
        failures: list[tuple[Host, Failure]] = []
        spoke_plain = False
        hosts = self._hosts_for(namespace, capability)
        for n, host in enumerate(hosts):
            if host.after_plain_answer and not spoke_plain:
                continue
            failure = Failure("")
            try:
                got = ask(host, deadline.share(len(hosts) - n))
            except (OSError, http.client.HTTPException) as error:
                spoke_plain = _is_plain(error, host)
                failure = refusal.of_error(error, what, host.address)
            except Failure as said:
                spoke_plain = False
                failure = said
            else:
                self._standing.succeed(host)
                return got
            failures.append((host, failure))
            if isinstance(failure, Unreachable) and not spoke_plain:
                self._standing.fail(host)
            if n + 1 < len(hosts):  # the last one's failure is told by whoever gets it
                log.info("leave host=%s mirror=%s cause=%s", host, host.mirror, failure.message)
        if not failures:
            remedy = f"give a host in its hosts.toml the capability {capability!r}"
            raise Unreachable(f"{what}: no host of {namespace} may {capability}", remedy)
        raise next((failure for host, failure in reversed(failures) if not host.mirror), failures[-1][1])

    def on_broken_answer(self, host: Host) -> None:
        """An answer that began well ended badly; the next question goes elsewhere first."""
        self._standing.fail(host)

    def _hosts_for(self, namespace: str, capability: str) -> tuple[Host, ...]:
        able = (host for host in self._hosts.upstream_of(namespace, self._facade) if capability in host.capabilities)
        return self._standing.order(tuple(able))


def _is_plain(error: BaseException, host: Host) -> bool:
    """Whether `host` itself answered without TLS, and not somebody it sent us to."""
    if not isinstance(error, PlainAnswerError):
        return False
    place = (addresses.split(host.address)[0], addresses.port_of(host.address, host.scheme))
    return (error.host, error.port) == place
