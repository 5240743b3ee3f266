"""An artifact → a registry: the blobs it lacks, then the config, then the manifest, so that a tag never names what
is not there.

A file is streamed from disk in one PUT, the form that every registry takes; memory is a block per connection
whatever the model's size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlencode

from modelvold.errors import InvalidInput, Mismatch, Refused, Unreachable
from modelvold.oci.digest import Digest
from modelvold.oci.document import MANIFEST
from modelvold.oci.reference import Reference
from modelvold.pack.conversation import Conversation, PlainAnswer
from modelvold.pack.folder import Doing, OnStep, Packed, Step
from modelvold.pack.read import Stop, blocks, in_parallel
from modelvold.pack.walk import Found
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.hosts import Hosts
from modelvold.registry.hosts_toml import Host

log = logging.getLogger(__name__)

#: Registries write a blob at a fraction of a network's rate; a few at once fill it.
_CONNECTIONS = 3
#: Seconds before a blob is tried again: a proxy that is being replaced takes some, a registry that is down longer
#: than a person waits.
_PAUSES = (1.0, 5.0)
_BLOB_TYPE = "application/octet-stream"


def push(
    packed: Packed,
    reference: Reference,
    hosts: Hosts,
    credentials: Credentials,
    *,
    on_step: OnStep = lambda _: None,
    facade: str | None = None,
) -> Digest:
    """Upload `packed` and tag it; the manifest's digest. `facade` is our own listener, which is no registry to push to.

    Raises InvalidInput for a reference without tag; Unauthorized, Forbidden, NotFound, Unreachable, Refused by
    what the registry answers; Refused for a file that changed since it was packed; Mismatch when the registry
    stored something else.
    """
    if reference.tag is None or reference.digest is not None:
        raise InvalidInput(f"{reference}: a push needs a tag and no digest", "write it as host[:port]/repository:tag")
    with ExitStack() as stack:
        pushing = _Push(packed, reference, on_step, stack)
        pushing.open(hosts, credentials, facade)
        in_parallel(pushing.layer, list(packed.files), _CONNECTIONS, pushing.stop, "pack-push")
        config = packed.artifact.config
        pushing.blob(Digest.of(config), "the config", config)
        pushing.manifest()
    log.info("pushed reference=%s manifest=%s bytes=%d", reference, packed.artifact.digest, packed.artifact.size)
    return packed.artifact.digest


class _Push:
    def __init__(self, packed: Packed, reference: Reference, on_step: OnStep, stack: ExitStack) -> None:
        self._packed, self._reference, self._on_step, self._stack = packed, reference, on_step, stack
        self._what = f"push {reference}"
        self._host = Host("https", reference.repository.host)
        self._credentials: BasicCredentials | None = None
        self._own = threading.local()
        self._lock = threading.Lock()  # guards _stack, and lets one thread at a time call on_step
        self.stop = Stop()

    def open(self, hosts: Hosts, credentials: Credentials, facade: str | None) -> None:
        """Find the registry's own server: what is pushed to a mirror is not where the reference says."""
        namespace, path = self._reference.repository.host, self._reference.repository.path
        servers = [host for host in hosts.upstream_of(namespace, facade) if not host.mirror]
        self._credentials = next(credentials.of_node((namespace, servers[0].address), path), None)
        for server in servers:
            self._host = server
            try:
                self._conversation()
            except PlainAnswer:
                continue
            return
        raise Unreachable(f"{self._what}: {self._host.address} does not speak TLS", "check the port, and hosts.toml")

    def layer(self, digest: Digest) -> None:
        found = self._packed.files[digest]
        self.blob(digest, repr(found.path), _Upload(found, self.stop, self._step))

    def blob(self, digest: Digest, name: str, body: _Upload | bytes) -> None:
        """Upload one blob unless the registry holds it; tried again while the registry is out of reach."""
        for pause in (*_PAUSES, None):
            self.stop.check()
            try:
                self._upload(digest, name, body)
            except Unreachable as error:
                if pause is None:
                    raise
                log.warning("retrying blob=%s pause=%s cause=%r", digest, pause, error.message)
                if isinstance(body, _Upload):
                    body.take_back()
                self.stop.wait(pause)
            else:
                return

    def manifest(self) -> None:
        conversation = self._conversation()
        document, digest = self._packed.artifact.manifest, self._packed.artifact.digest
        url = f"{self._url(conversation)}/manifests/{self._reference.tag}"
        answer = conversation.send("PUT", url, {"Content-Type": MANIFEST}, document)
        if answer.status not in {200, 201, 202}:
            raise conversation.refused(answer, "the manifest")
        stored = answer.headers.get("Docker-Content-Digest", str(digest))
        if stored != str(digest):
            raise Mismatch(
                f"{self._what}: the registry stored {stored[:80]!r} for {digest}", "ask whoever runs the registry"
            )

    def _upload(self, digest: Digest, name: str, body: _Upload | bytes) -> None:
        conversation = self._conversation()
        blob = f"{self._url(conversation)}/blobs/{digest}"
        if conversation.send("HEAD", blob).status == 200:
            if isinstance(body, _Upload):
                self._step(Step(Doing.HELD, body.path, len(body)))
            return
        uploads = f"{self._url(conversation)}/blobs/uploads/"
        started = conversation.send("POST", uploads)
        location = started.headers.get("Location", "")
        if started.status != 202 or not location:
            raise conversation.refused(started, name)
        there = conversation.follow(uploads, location)
        target = f"{there}{'&' if '?' in there else '?'}{urlencode({'digest': str(digest)})}"
        answer = conversation.send("PUT", target, {"Content-Type": _BLOB_TYPE}, body if len(body) else b"")
        if answer.status not in {200, 201, 202, 204}:
            raise self._not_stored(conversation.refused(answer, name), answer.body, name)

    def _not_stored(self, refused: Exception, body: bytes, name: str) -> Exception:
        if isinstance(refused, Refused) and b"DIGEST_INVALID" in body:
            return Refused(
                f"{self._what}: {name} changed while it was packed", "pack again when nothing writes to the folder"
            )
        return refused

    def _step(self, step: Step) -> None:
        with self._lock:
            self._on_step(step)

    def _url(self, conversation: Conversation) -> str:
        return f"{conversation.base}/{self._reference.repository.path}"

    def _conversation(self) -> Conversation:
        known: Conversation | None = getattr(self._own, "conversation", None)
        if known is None:
            known = Conversation(self._host, self._credentials, self._what)
            with self._lock:
                self._stack.enter_context(known)
            self.stop.calls(known.abort)
            known.open()
            self._own.conversation = known
        return known


class _Upload:
    """A file as a request's body; iterated anew it starts anew, and takes back what it said was sent."""

    def __init__(self, found: Found, stop: Stop, on_step: OnStep) -> None:
        self._found, self._stop, self._on_step = found, stop, on_step
        self._sent = 0
        self.path = found.path

    def __len__(self) -> int:
        return self._found.size

    def __iter__(self) -> Iterator[memoryview]:
        self.take_back()
        for block in blocks(self._found, self._stop):
            yield block
            self._sent += len(block)
            self._on_step(Step(Doing.SENT, self._found.path, len(block)))

    def take_back(self) -> None:
        if self._sent:
            self._on_step(Step(Doing.SENT, self._found.path, -self._sent))
            self._sent = 0
