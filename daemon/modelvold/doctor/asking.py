"""Asks a registry for a model as the daemon would on this node, but for what pods brought it: documents, and one byte of a blob."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelvold.doctor.model import Answer, Route, largest
from modelvold.errors import Failure, Forbidden, InvalidInput, Malformed, Unauthorized
from modelvold.layer.extent import BlobOffset
from modelvold.oci import modelpack
from modelvold.oci.document import Index, Manifest
from modelvold.oci.reference import Reference
from modelvold.oci.synthetic import parse_pinned_tag
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.hosts import Hosts
from modelvold.registry.proxies import NO_PROXIES, Proxies

#: A registry that is slower leaves a pod waiting longer than its Prepare may take (20 s).
_PATIENCE = 15.0


def route_of(reference: Reference, hosts_dir: Path, facade: str) -> Route:
    """`facade` is the listener's host:port, empty where it is off. Raises Failure where hosts.toml is broken."""
    hosts, host = Hosts(hosts_dir), reference.repository.host
    try:
        server = next(each for each in hosts.upstream_of(host, facade or None) if not each.mirror)
        leads = bool(facade) and hosts.names(host, facade)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"hosts.toml of {host}: {error}", "mend the file; containerd reads it too") from None
    name, colon, port = host.rpartition(":")
    folder = hosts_dir / (f"{name}_{port}_" if colon else host)
    return Route(leads, str(server), facade, folder / "hosts.toml")


def ask(
    reference: Reference,
    hosts_dir: Path,
    docker_config: Path,
    facade: str,
    architecture: str,
    *,
    proxies: Proxies = NO_PROXIES,
) -> Answer:
    """`facade`, as above, is never asked; `architecture` is this node's, in OCI's words."""
    witness = _Witness(docker_config)
    with Client(Hosts(hosts_dir), witness, facade=facade or None, proxies=proxies) as client:
        try:
            manifest = manifest_of(client, reference, architecture)
        except Failure as failure:
            return Answer(
                reference, None, failure, witness.refused() if isinstance(failure, Unauthorized | Forbidden) else ""
            )
        return Answer(reference, manifest, None, witness.believed(), _last_byte(client, reference, manifest))


class _Witness(Credentials):
    """The node's credentials, and whether a registry wanted them."""

    def __init__(self, docker_config: Path) -> None:
        super().__init__(docker_config)
        self._file = docker_config
        self._is_asked = False
        self._is_given = False

    def of_node(self, addresses: tuple[str, ...], path: str) -> Iterator[BasicCredentials]:
        self._is_asked = True
        for credentials in super().of_node(addresses, path):
            self._is_given = True
            yield credentials

    def refused(self) -> str:
        if self._is_given:
            return f"refused were the credentials of {self._file}"
        return f"there are none for it in {self._file}"

    def believed(self) -> str:
        if self._is_given:
            return f"and accepts the credentials of {self._file}"
        return "and lets anybody read it" if self._is_asked else "and asks for no credentials"


def manifest_of(client: Client, reference: Reference, architecture: str) -> Manifest:
    """As the opener finds it, through an index where there is one. Raises Failure."""
    pinned = parse_pinned_tag(reference.tag or "")
    found = client.resolve(reference.at(pinned) if pinned else reference, timeout=_PATIENCE)
    if isinstance(found, Index):
        chosen = modelpack.select(found, str(reference), architecture)
        found = client.resolve(reference.at(chosen.digest), timeout=_PATIENCE)
    if isinstance(found, Index):
        raise Malformed(f"{reference}: an index in an index", "ask for one of its manifests by digest")
    return found


def _last_byte(client: Client, reference: Reference, manifest: Manifest) -> Failure | None:
    """Registries send elsewhere for blobs, where a firewall or a missing range may be in the way: why it failed, if it did."""
    layer = largest(manifest)
    if layer is None:
        return None
    size = layer.descriptor.size
    start, end = BlobOffset(size - 1), BlobOffset(size)
    try:
        with client.open_range(
            reference.repository, layer.descriptor.digest, start, end, timeout=_PATIENCE, size=size
        ) as body:
            body.readinto(memoryview(bytearray(1)))
    except Failure as failure:
        return failure
    return None
