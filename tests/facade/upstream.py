"""The façade's ports in memory, and a client that says nothing but HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from modelvold.errors import Failure, NotFound, Unauthorized
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor, Index, Manifest, parse
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import GivenSynthetic
from modelvold.registry.credentials import BasicCredentials

HOST = "reg.example"
POD = BasicCredentials("pod", "s3cret-of-the-pod")


class MemoryUpstream:
    """Registries by content. `calls` is what was asked, in order; `trouble` is raised instead of an answer."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.private: set[str] = set()  # repositories that only POD may read
        self.denial: type[Failure] = Unauthorized
        self.trouble: Failure | None = None
        self.hosts = {HOST, "other.example:5000"}
        self.hosts_trouble: Failure | None = None
        self.calls: list[str] = []
        self.brought: list[tuple[str, BasicCredentials]] = []
        self.gate = threading.Event()  # cleared: accepts and never answers
        self.gate.set()

    def put(self, name: str, content: bytes) -> Digest:
        """`name` is host/repository:tag; the content can be had by its digest too."""
        digest = Digest.of(content)
        self.documents[name] = content
        self.documents[f"{name.rpartition(':')[0]}@{digest}"] = content
        return digest

    def _content(self, verb: str, reference: Reference, credentials: BasicCredentials | None) -> bytes:
        self.calls.append(f"{verb} {reference}" + (" as pod" if credentials else ""))
        self.gate.wait()
        if self.trouble:
            raise self.trouble
        if str(reference.repository) in self.private and credentials != POD:
            raise self.denial(f"{reference}: the registry says no", "docker login")
        if str(reference) not in self.documents:
            raise NotFound(f"{reference}: not found")
        return self.documents[str(reference)]

    def head(self, reference: Reference, credentials: BasicCredentials | None = None) -> Descriptor:
        content = self._content("HEAD", reference, credentials)
        return Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(content), len(content))

    def resolve(self, reference: Reference, credentials: BasicCredentials | None = None) -> Manifest | Index:
        return parse(self._content("GET", reference, credentials), str(reference))

    def names_facade(self, host: str) -> bool:
        if self.hosts_trouble:
            raise self.hosts_trouble
        return host in self.hosts

    def remember(self, repository: Repository, credentials: BasicCredentials) -> None:
        self.brought.append((str(repository), credentials))


class MemoryGiven:
    def __init__(self) -> None:
        self.records: dict[Digest, GivenSynthetic] = {}
        self.trouble: Exception | None = None

    def synthetic_of(self, digest: Digest) -> GivenSynthetic | None:
        return self.records.get(digest)

    def record(self, given: GivenSynthetic) -> None:
        if self.trouble:
            raise self.trouble
        self.records[given.synthetic] = given


@dataclass(frozen=True)
class Reply:
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return self.headers["docker-content-digest"]

    @property
    def error(self) -> dict[str, Any]:
        """The one error of an OCI error body."""
        (only,) = json.loads(self.body)["errors"]
        assert set(only) == {"code", "message"}
        return dict(only)


def basic(credentials: BasicCredentials) -> dict[str, str]:
    text = f"{credentials.username}:{credentials.password}".encode()
    return {"Authorization": "Basic " + base64.b64encode(text).decode()}


def ask(address: str, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, target, headers=headers or {})
        response = connection.getresponse()
        return Reply(
            response.status, response.reason, {k.lower(): v for k, v in response.getheaders()}, response.read()
        )
    finally:
        connection.close()
