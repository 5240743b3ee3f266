"""Who we are to a registry: the node's own docker `config.json`, and what pods brought, kept in memory alone.

Rules: a secret is never in a repr, a log line or an error. What a pod brought serves the repository it was brought for,
and only callers that ask for it (`remembered`): the node's own credentials answer for everybody else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelvold.oci.reference import Repository
from modelvold.registry.docker_config import DockerConfig

#: A node runs a few hundred pods; each repository may be pulled with several secrets, the newest of which are tried.
_MOST_REPOSITORIES = 4096
_MOST_EACH = 4


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """A user name and its password (or access token). Equal by value; the repr shows neither."""

    username: str = field(repr=False)
    password: str = field(repr=False)


class Credentials:
    """Looks credentials up. Thread-safe. Without `docker_config` the node has none of its own; a missing file is an
    empty one.
    """

    def __init__(self, docker_config: Path | None = None) -> None:
        self._config = DockerConfig(docker_config) if docker_config else None
        self._brought: OrderedDict[Repository, tuple[BasicCredentials, ...]] = OrderedDict()
        self._lock = threading.Lock()  # guards _brought

    def remember(self, repository: Repository, credentials: BasicCredentials) -> None:
        """Keep what a pod brought for `repository`, until the daemon ends or newer ones push it out."""
        with self._lock:
            others = tuple(kept for kept in self._brought.pop(repository, ()) if kept != credentials)
            self._brought[repository] = (credentials, *others)[:_MOST_EACH]
            while len(self._brought) > _MOST_REPOSITORIES:
                self._brought.popitem(last=False)

    def remembered(self, repository: Repository) -> tuple[BasicCredentials, ...]:
        """What pods brought for `repository`, the newest first."""
        with self._lock:
            return self._brought.get(repository, ())

    def of_node(self, addresses: tuple[str, ...], path: str) -> Iterator[BasicCredentials]:
        """The node's own for the first of `addresses` (host[:port]) that has any; `path` is the repository's.

        Raises InvalidInput when the docker config is malformed.
        """
        for address in addresses if self._config else ():
            found = self._config.of(address, path) if self._config else None
            if found is not None:
                yield BasicCredentials(*found)
                return

    def renew(self, addresses: tuple[str, ...]) -> bool:
        """Forget what credential programs said of `addresses` some time ago. True if there was something to forget."""
        forgotten = [self._config.forget(address) for address in addresses] if self._config else []
        return any(forgotten)

    def trouble(self, addresses: tuple[str, ...]) -> str:
        """Why the node's own could not be looked up, for the remedy of a refusal; empty if nothing went wrong."""
        return next((why for address in addresses if self._config and (why := self._config.trouble(address))), "")
