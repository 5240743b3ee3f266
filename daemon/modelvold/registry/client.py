"""The door to registries: manifests, small blobs, ranges of large ones.

Rules: a document is never read beyond its bound, nor believed before its digest matches. A silent host takes at most
its share of the time. Only callers that say `remembered`, and those that read a model already opened, are served with
what pods brought.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from modelvold.errors import Malformed, NotFound
from modelvold.layer.extent import BlobOffset
from modelvold.oci import document
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor, Index, Manifest
from modelvold.oci.reference import Reference, Repository
from modelvold.registry import address as addresses
from modelvold.registry import answers
from modelvold.registry.authorizer import Authorizer, Identity, failure_of
from modelvold.registry.body import Body
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.deadline import Deadline
from modelvold.registry.failover import Failover
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import PULL, RESOLVE, Host
from modelvold.registry.wire import Answer, Headers, Request, Wire

#: For a document that is no manifest because of its size.
_REPACK = "no manifest may be larger: the producer must repack it with fewer layers"
_ACCEPT = (("Accept", ", ".join(sorted(document.MANIFEST_TYPES | document.INDEX_TYPES))),)
_WHOLE = frozenset({200})
_RANGED = frozenset({200, 206})
#: Distribution's answer to a method it does not know; some registries know no HEAD of manifests.
_NO_SUCH_METHOD = 405
#: A registry without ranges is read from the blob's start; beyond this it would cost more than it brings.
_LONGEST_SKIP = 64 << 20


@dataclass(frozen=True, slots=True)
class _Question:
    """What to ask any of a registry's hosts: `path` below the repository's, `what` for errors."""

    path: str
    what: str
    identity: Identity
    headers: Headers = ()
    good: frozenset[int] = field(default=_WHOLE)


class Client:
    """Thread-safe. A context manager; `close` wakes whoever still reads.

    Every method raises Unauthorized, Forbidden, NotFound, Unreachable (refused, silent, TLS, 429, 5xx), Malformed and
    Mismatch, each naming what was asked for, the host and the cause; InvalidInput for a malformed hosts.toml or
    docker config.
    """

    def __init__(
        self,
        hosts: Hosts,
        credentials: Credentials,
        *,
        facade: str | None = None,
        connect_timeout: float = 10,
        read_timeout: float = 20,
    ) -> None:
        """`facade` is our own listener's host:port, never asked. Time-outs in seconds: to connect; of silence in an
        answer.
        """
        self._hosts = hosts
        self._credentials = credentials
        self._facade = facade
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._wire = Wire()
        self._authorizer = Authorizer(self._wire, credentials)
        self._failover = Failover(hosts, facade)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. Bodies still open raise Unreachable to their readers; nothing more can be asked."""
        self._wire.close()

    def head(
        self,
        reference: Reference,
        credentials: BasicCredentials | None = None,
        *,
        remembered: bool = False,
        timeout: float | None = None,
    ) -> Descriptor:
        """Type, digest and size of what `reference` names, asked of the registry anew. `timeout` bounds it all, in
        seconds.

        With `credentials` it is asked as nobody else; without, as the node, and with `remembered` first as pods did.
        """
        question = _manifest(reference, Identity(reference.repository, credentials, remembered))

        def ask(host: Host, deadline: Deadline) -> Descriptor:
            either = replace(question, good=frozenset({200, _NO_SUCH_METHOD}))
            answer = self._ask("HEAD", either, host, deadline)
            answer.stream.finish()
            named = answers.descriptor_in(answer, reference, question.what) if answer.status == 200 else None
            return named or self._whole(question, reference, host, deadline)[1]

        return self._failover.first(
            reference.repository.host, _capability(reference), question.what, self._deadline(timeout), ask
        )

    def resolve(
        self,
        reference: Reference,
        credentials: BasicCredentials | None = None,
        *,
        remembered: bool = False,
        timeout: float | None = None,
    ) -> Manifest | Index:
        """The manifest or index that `reference` names, its digest checked. As whom and how long: see `head`."""
        question = _manifest(reference, Identity(reference.repository, credentials, remembered))

        def ask(host: Host, deadline: Deadline) -> Manifest | Index:
            return document.parse(self._whole(question, reference, host, deadline)[0], question.what)

        return self._failover.first(
            reference.repository.host, _capability(reference), question.what, self._deadline(timeout), ask
        )

    def read_blob(self, repository: Repository, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, whole and verified. Raises Malformed when it is declared larger than `limit` bytes."""
        question = _blob(repository, descriptor.digest)
        if descriptor.size > limit:
            cause = f"{descriptor.size} bytes, more than the {limit} that such a blob may have"
            raise Malformed(f"{question.what}: {cause}", "the producer must repack it")

        def ask(host: Host, deadline: Deadline) -> bytes:
            answer = self._ask("GET", question, host, deadline)
            body = answers.read_bounded(answer, question.what, deadline, self._read_timeout, descriptor.size)
            answers.check_length(body, descriptor.size, question.what, answer.address)
            answers.check_digest(body, descriptor.digest, question.what, answer.address)
            return body

        return self._failover.first(repository.host, PULL, question.what, self._deadline(None), ask)

    def has_blob(self, repository: Repository, digest: Digest, timeout: float | None = None) -> bool:
        """Whether the registry shows this blob to this repository's own credentials, asked anew."""
        question = _blob(repository, digest)

        def ask(host: Host, deadline: Deadline) -> bool:
            self._ask("HEAD", question, host, deadline).stream.finish()
            return True

        try:
            return self._failover.first(repository.host, PULL, question.what, self._deadline(timeout), ask)
        except NotFound:
            return False

    def open_range(
        self,
        repository: Repository,
        digest: Digest,
        start: BlobOffset,
        end: BlobOffset,
        *,
        timeout: float,
        size: int | None = None,
    ) -> Body:
        """The blob's bytes [start, end), not empty, by one GET. Close the body, best by `with`.

        `timeout` in seconds bounds the time until the answer begins, and then each silence; `size` is how many bytes
        the manifest gives the whole blob. Raises Malformed for a range beyond the blob or a blob of another size ("a
        size that lies"), and for a registry that ignores ranges where `start` is too far in
        to skip to.
        """
        if not 0 <= start < end:
            raise ValueError(f"bytes {start}-{end} are no range")
        asked = (("Range", f"bytes={start}-{end - 1}"),)
        question = replace(_blob(repository, digest), headers=asked, good=_RANGED)
        what = f"{question.what} bytes {start}-{end}"

        def ask(host: Host, deadline: Deadline) -> Body:
            answer = self._ask("GET", replace(question, what=what), host, deadline)
            try:
                skip = answers.skip_before(answer, start, end, size, what, longest=_LONGEST_SKIP)
            except BaseException:
                answer.stream.discard()
                raise
            return Body(
                answer.stream,
                length=end - start,
                skip=skip,
                exact=answer.status == 206,
                timeout=timeout,
                what=what,
                host=answer.address,
                on_failure=lambda: self._failover.on_broken_answer(host),
            )

        return self._failover.first(repository.host, PULL, what, Deadline(timeout), ask)

    def names_facade(self, host: str) -> bool:
        """Whether the hosts.toml of the registry `host` names our façade's listener. Raises InvalidInput."""
        return self._facade is not None and self._hosts.names(host, self._facade)

    def remember(self, repository: Repository, credentials: BasicCredentials) -> None:
        """Keep what a pod brought, in memory only, for reading from `repository`."""
        self._credentials.remember(repository, credentials)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._connect_timeout + self._read_timeout if timeout is None else timeout)

    def _whole(
        self, question: _Question, reference: Reference, host: Host, deadline: Deadline
    ) -> tuple[bytes, Descriptor]:
        """GET the manifest, bounded; its digest must be the reference's, and the one the registry names where it
        does.
        """
        answer = self._ask("GET", question, host, deadline)
        body = answers.read_bounded(
            answer, question.what, deadline, self._read_timeout, document.LARGEST_DOCUMENT, remedy=_REPACK
        )
        for digest in (reference.digest, answers.digest_in(answer)):
            if digest is not None:
                answers.check_digest(body, digest, question.what, answer.address)
        return body, Descriptor(answers.media_type_in(answer), Digest.of(body), len(body))

    def _ask(self, method: str, question: _Question, host: Host, deadline: Deadline) -> Answer:
        """An answer of a status that is good for the question; any other is raised as what it means."""
        repository = question.identity.repository
        namespace = f"?ns={repository.host}" if _is_proxy(host, repository) else ""
        request = Request(
            method,
            f"{host}{host.path}/{repository.path}/{question.path}{namespace}",
            question.what,
            headers=question.headers,
            connect=host.dial_timeout or self._connect_timeout,
            silence=self._read_timeout,
        )
        answer = self._authorizer.ask(host, request, question.identity, deadline)
        if answer.status not in question.good:
            raise failure_of(answer, question.what, deadline)
        return answer


def _manifest(reference: Reference, identity: Identity) -> _Question:
    return _Question(f"manifests/{reference.target}", str(reference), identity, _ACCEPT)


def _blob(repository: Repository, digest: Digest) -> _Question:
    return _Question(f"blobs/{digest}", f"{repository}@{digest}", Identity(repository, remembered=True))


def _capability(reference: Reference) -> str:
    """Only a tag is believed; a digest can be checked, so whoever may be pulled from may answer (as in containerd)."""
    return PULL if reference.digest is not None else RESOLVE


def _is_proxy(host: Host, repository: Repository) -> bool:
    """Whether `host` must be told whose repository is meant, as containerd tells it."""
    if repository.host == "docker.io" and host.address == "registry-1.docker.io":
        return False
    ports = (addresses.port_of(host.address, host.scheme), addresses.port_of(repository.host, host.scheme))
    return addresses.split(host.address)[0] != addresses.split(repository.host)[0] or ports[0] != ports[1]
