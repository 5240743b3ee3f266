"""What the façade needs of others."""

from __future__ import annotations

from typing import Protocol

from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor, Index, Manifest
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import GivenSynthetic
from modelvold.registry.credentials import BasicCredentials


class Upstream(Protocol):
    """The registries behind us, reached without coming back to us. Thread-safe.

    With `credentials` None the node's own are used, **never** what a pod brought before: who may read a private model
    is decided by these calls. Both raise Unauthorized, Forbidden, NotFound, Unreachable or Malformed.
    """

    def head(self, reference: Reference, credentials: BasicCredentials | None = None) -> Descriptor:
        """What `reference` names at this moment."""

    def resolve(self, reference: Reference, credentials: BasicCredentials | None = None) -> Manifest | Index:
        """The document itself, its digest checked."""

    def names_facade(self, host: str) -> bool:
        """Whether the node's configuration for the registry `host` names this façade."""

    def remember(self, repository: Repository, credentials: BasicCredentials) -> None:
        """Let `repository` be fetched with what a pod brought. Kept in memory only."""


class Given(Protocol):
    """The record of synthetic images given, which outlives the daemon. Thread-safe."""

    def synthetic_of(self, digest: Digest) -> GivenSynthetic | None:
        """What was recorded for the synthetic manifest `digest`."""

    def record(self, given: GivenSynthetic) -> None:
        """Durable when it returns. What was recorded for the same synthetic digest is replaced (`private` can
        change)."""
