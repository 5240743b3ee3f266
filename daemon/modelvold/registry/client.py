"""The door to registries: manifests, small blobs, ranges of large ones.

Rules: a document is never read beyond its bound, nor believed before its digest matches. A silent host takes at most
its share of the time. Only callers that say `remembered`, and those that read a model already opened, are served with
what pods brought.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Self

from modelvold.errors import Malformed, NotFound
from modelvold.layer.extent import BlobOffset
from modelvold.oci import document
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor, Index, Manifest
from modelvold.oci.reference import Reference, Repository
from modelvold.registry import answers
from modelvold.registry import question as questions
from modelvold.registry.asking import Asking
from modelvold.registry.authorizer import Identity
from modelvold.registry.body import Body
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.deadline import Deadline
from modelvold.registry.failover import Failover
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import PULL, Host
from modelvold.registry.proxies import NO_PROXIES, Proxies
from modelvold.registry.question import Question
from modelvold.registry.wire import Answer, Wire

#: For a document that is no manifest because of its size.
_REPACK = "no manifest may be larger: the producer must repack it with fewer layers"
_RANGED = frozenset({200, 206})
#: Distribution's answer to a method it does not know; some registries know no HEAD of manifests.
_NO_SUCH_METHOD = 405
#: What a registry without ranges sends before a range is thrown away; beyond this it would cost more than it brings.
_LONGEST_SKIP = 64 << 20


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
        proxies: Proxies = NO_PROXIES,
        connect_timeout: float = 10,
        read_timeout: float = 20,
    ) -> None:
        """`facade` is our own listener's host:port, never asked; `proxies` are between us and whoever is asked, token servers and
        storage included. Time-outs in seconds: to connect; of silence in an answer.
        """
        self._hosts = hosts
        self._credentials = credentials
        self._facade = facade
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._wire = Wire(proxies)
        self._failover = Failover(hosts, facade)
        self._asking = Asking(self._wire, credentials, self._failover, connect=connect_timeout, silence=read_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. Whoever waits for an answer, or reads a body, gets Unreachable at once; nothing more can be asked. Only the
        look-up of a name cannot be woken."""
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
        question = questions.manifest(reference, Identity(reference.repository, credentials, remembered))

        def ask(host: Host, deadline: Deadline) -> Descriptor:
            either = replace(question, good=frozenset({200, _NO_SUCH_METHOD}))
            answer = self._asking.ask("HEAD", either, host, deadline)
            answer.stream.finish()
            named = answers.descriptor_in(answer, reference, question.what) if answer.status == 200 else None
            return named or self._whole(question, reference, host, deadline)[1]

        return self._failover.first(
            reference.repository, questions.capability(reference), question.what, self._deadline(timeout), ask
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
        question = questions.manifest(reference, Identity(reference.repository, credentials, remembered))

        def ask(host: Host, deadline: Deadline) -> Manifest | Index:
            return document.parse(self._whole(question, reference, host, deadline)[0], question.what)

        return self._failover.first(
            reference.repository, questions.capability(reference), question.what, self._deadline(timeout), ask
        )

    def read_blob(self, repository: Repository, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, whole and verified. Raises Malformed when it is declared larger than `limit` bytes."""
        question = questions.blob(repository, descriptor.digest)
        if descriptor.size > limit:
            cause = f"{descriptor.size} bytes, more than the {limit} that such a blob may have"
            raise Malformed(f"{question.what}: {cause}", "the producer must repack it")

        def ask(host: Host, deadline: Deadline) -> bytes:
            answer = self._asking.ask("GET", question, host, deadline)
            body = answers.read_bounded(answer, question.what, deadline, self._read_timeout, descriptor.size)
            answers.check_length(body, descriptor.size, question.what, answer.address)
            answers.check_digest(body, descriptor.digest, question.what, answer.address)
            return body

        return self._failover.first(repository, PULL, question.what, self._deadline(None), ask)

    def has_blob(self, repository: Repository, digest: Digest, timeout: float | None = None) -> bool:
        """Whether the registry shows this blob to this repository's own credentials, asked anew."""
        question = questions.blob(repository, digest)

        def ask(host: Host, deadline: Deadline) -> bool:
            self._asking.ask("HEAD", question, host, deadline).stream.finish()
            return True

        try:
            return self._failover.first(repository, PULL, question.what, self._deadline(timeout), ask)
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
        avoid: AbstractSet[str] = frozenset(),
        takes_whole: bool = False,
    ) -> Body:
        """The blob's bytes [start, end), not empty, by one GET. Close the body, best by `with`.

        A host that ignores ranges sends the blob from its start. `takes_whole`: the body hands those bytes out too, however many, and
        says in `Body.ahead` how many; without, they are thrown away.

        `timeout` in seconds bounds the time until the answer begins, and then each silence, and how long it may come too slowly;
        `size` is how many bytes the manifest gives the whole blob. Hosts to `avoid` (as `Body.host` names them) are not asked;
        Mismatch where that leaves none. Raises Malformed for a range beyond the blob or a blob of another size ("a size that
        lies"), and for a start that is too far in to skip to. What may pass is told before what
        will not: whoever wants a range asks for it again.
        """
        if not 0 <= start < end:
            raise ValueError(f"bytes {start}-{end} are no range")
        asked = (("Range", f"bytes={start}-{end - 1}"),)
        question = replace(questions.blob(repository, digest), headers=asked, good=_RANGED, is_range=True)
        what = f"{question.what} bytes {start}-{end}"

        question = replace(question, what=what)
        longest = None if takes_whole else _LONGEST_SKIP

        def before(answer: Answer) -> int:
            return answers.skip_before(answer, start, end, size, what, longest=longest)

        def ask(host: Host, deadline: Deadline) -> Body:
            answer, early = self._asking.ask_for_range(question, host, deadline, before)
            ahead = early if takes_whole else 0
            return Body(
                answer.stream,
                length=ahead + end - start,
                skip=early - ahead,
                ahead=ahead,
                exact=answer.status == 206,
                timeout=timeout,
                what=what,
                host=host.address,
                sender=answer.address,
                on_failure=lambda: self._asking.on_broken_range(question, host, answer),
            )

        return self._failover.first(repository, PULL, what, Deadline(timeout), ask, avoid=avoid, again=True)

    def hosts(self, repository: Repository) -> frozenset[str]:
        """The hosts that `open_range` asks for this repository, as `Body.host` names them. Raises InvalidInput."""
        return self._failover.addresses(repository.host, PULL)

    def names_facade(self, host: str) -> bool:
        """Whether the hosts.toml of the registry `host` names our façade's listener. Raises InvalidInput."""
        return self._facade is not None and self._hosts.names(host, self._facade)

    def remember(self, repository: Repository, credentials: BasicCredentials) -> None:
        """Keep what a pod brought, in memory only, for reading from `repository`."""
        self._credentials.remember(repository, credentials)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._connect_timeout + self._read_timeout if timeout is None else timeout)

    def _whole(
        self, question: Question, reference: Reference, host: Host, deadline: Deadline
    ) -> tuple[bytes, Descriptor]:
        """GET the manifest, bounded; its digest must be the reference's, and the one the registry names where it
        does.
        """
        answer = self._asking.ask("GET", question, host, deadline)
        body = answers.read_bounded(
            answer, question.what, deadline, self._read_timeout, document.LARGEST_DOCUMENT, remedy=_REPACK
        )
        for digest in (reference.digest, answers.digest_in(answer)):
            if digest is not None:
                answers.check_digest(body, digest, question.what, answer.address)
        return body, Descriptor(answers.media_type_in(answer), Digest.of(body), len(body))
