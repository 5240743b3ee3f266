"""What is asked of a registry: a document, a blob, a range of one. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelvold.oci import document
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference, Repository
from modelvold.registry import address as addresses
from modelvold.registry.authorizer import Identity
from modelvold.registry.hosts_toml import PULL, RESOLVE, Host
from modelvold.registry.wire import Headers

_ACCEPT = (("Accept", ", ".join(sorted(document.MANIFEST_TYPES | document.INDEX_TYPES))),)
_WHOLE = frozenset({200})


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask any of a registry's hosts: `path` below the repository's, `what` for errors."""

    path: str
    what: str
    identity: Identity
    headers: Headers = ()
    good: frozenset[int] = field(default=_WHOLE)
    is_range: bool = False


def manifest(reference: Reference, identity: Identity) -> Question:
    return Question(f"manifests/{reference.target}", str(reference), identity, _ACCEPT)


def blob(repository: Repository, digest: Digest) -> Question:
    return Question(f"blobs/{digest}", f"{repository}@{digest}", Identity(repository, remembered=True))


def capability(reference: Reference) -> str:
    """Only a tag is believed; a digest can be checked, so whoever may be pulled from may answer (as in containerd)."""
    return PULL if reference.digest is not None else RESOLVE


def is_proxy(host: Host, repository: Repository) -> bool:
    """Whether `host` must be told whose repository is meant, as containerd tells it."""
    if repository.host == "docker.io" and host.address == "registry-1.docker.io":
        return False
    ports = (addresses.port_of(host.address, host.scheme), addresses.port_of(repository.host, host.scheme))
    return addresses.split(host.address)[0] != addresses.split(repository.host)[0] or ports[0] != ports[1]
