"""What the façade answers: its rules, without sockets.

- Upstream is what `?ns=` names, and only if that registry's configuration names us. A request that carries our own
  hop header has gone in a circle.
- A tag is looked up upstream each time; a synthetic digest once given is served from the record. For a model that
  only a pod's own credentials could read, that too needs credentials which upstream accepts now. (Blobs do not: the
  synthetic config tells nothing but the digests that whoever asks for it has named.)
- The node's own credentials are tried first, then what the caller brought, which is kept only if it was needed and
  opened a model.
- 404 is for what is known not to be a model, for digests that upstream does not have, and for blobs that no document of
  ours has named. A tag that upstream does not have is answered 424, so that containerd tells our reason.
- Never an index: of an index we take this node's manifest.

After a HEAD that failed containerd goes on to the next host, where it would fetch a model that cannot be mounted as if it
were an image. So a HEAD for a model that is broken is answered with a digest that stands for the
refusal; the GET for that digest fails with its text, upstream does not know the digest, and the text reaches the
pod's event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from modelvold.errors import Failure, Forbidden, Malformed, NotAModel, NotFound, Refused, Unauthorized
from modelvold.facade.answer import Answer, document, refusal, refused
from modelvold.facade.patience import Patience
from modelvold.facade.ports import Given, Upstream
from modelvold.facade.remembered import Remembered
from modelvold.facade.request import HOP_HEADER, Kind, understand
from modelvold.oci.digest import Digest
from modelvold.oci.document import IMAGE_CONFIG, MANIFEST, Index, Manifest
from modelvold.oci.modelpack import MODEL_MANIFEST_TYPES, Model, is_model, read, select
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import (
    GivenSynthetic,
    Synthetic,
    parse_pinned_tag,
    pinned_tag,
    recall,
    synthesize,
)
from modelvold.registry.credentials import BasicCredentials

T = TypeVar("T")

#: A few hundred bytes each. Enough for every image a node has; forgetting costs one request upstream.
_MOST_REMEMBERED = 16_384
#: An index may name an index; nobody goes deeper.
_DEEPEST_INDEX = 2


class Desk:
    """Answers requests. Thread-safe; never raises a Failure."""

    def __init__(self, upstream: Upstream, given: Given, patience: Patience, architecture: str) -> None:
        self._upstream = upstream
        self._given = given
        self._patience = patience
        self._architecture = architecture
        self._others: Remembered[Digest, bool] = Remembered(_MOST_REMEMBERED)  # known not to be models
        self._synthetics: Remembered[tuple[Repository, Digest], Digest] = Remembered(
            _MOST_REMEMBERED
        )  # by what a tag named
        self._blobs: Remembered[tuple[Repository, Digest], Answer] = Remembered(_MOST_REMEMBERED)
        self._refusals: Remembered[tuple[Repository, Digest], Answer] = Remembered(_MOST_REMEMBERED)

    def answer(self, target: str, headers: Mapping[str, str], *, head: bool) -> Answer:
        """The answer to a GET (or HEAD) of `target`, a path with its query. The names of `headers` are in lower
        case."""
        if HOP_HEADER.lower() in headers:
            return refused(
                HTTPStatus.LOOP_DETECTED,
                "DENIED",
                "this request came from this façade itself: a registry's mirrors form a circle",
            )
        try:
            asked = understand(target, headers)
            if asked.reference is None:
                return Answer(HTTPStatus.OK, body=b"{}")
            self._admit(asked.reference.repository.host)
            if asked.kind is Kind.BLOB:
                return self._blob(asked.reference)
            if asked.reference.digest:
                return self._by_digest(asked.reference, asked.reference.digest, asked.basic)
            return self._by_tag(asked.reference, asked.basic, head=head)
        except Failure as failure:
            return refusal(failure)

    def _admit(self, host: str) -> None:
        try:
            named = self._upstream.names_facade(host)
        except Failure as failure:
            raise Failure(f"{host}: its hosts.toml cannot be read: {failure.message}", failure.remedy) from failure
        if not named:
            raise Forbidden(
                f"{host}: this façade is no proxy to it",
                "name this façade as a host in that registry's hosts.toml, if its models are to be mounted",
            )

    def _by_tag(self, reference: Reference, basic: BasicCredentials | None, *, head: bool) -> Answer:
        pinned = parse_pinned_tag(reference.tag or "")
        wanted = reference.at(pinned) if pinned else reference
        try:
            synthetic = self._patience.ask(reference.repository.host, partial(self._find, wanted, basic))
        except (Malformed, NotAModel) as failure:
            # Only we know pinned tags: nothing is behind them upstream that containerd could go on to.
            if not head or (isinstance(failure, NotAModel) and not pinned):
                raise
            return self._refuse_by_digest(reference.repository, failure)
        except NotFound as failure:
            return refused(HTTPStatus.FAILED_DEPENDENCY, "MANIFEST_UNKNOWN", str(failure))
        return document(synthetic.manifest, MANIFEST, synthetic.manifest_digest)

    def _refuse_by_digest(self, repository: Repository, failure: Failure) -> Answer:
        answer = refusal(failure)
        if isinstance(failure, NotAModel):
            answer = refused(HTTPStatus.UNPROCESSABLE_ENTITY, "MANIFEST_INVALID", str(failure))
        digest = Digest(hashlib.sha256(b"modelvold/v1/refusal\0" + answer.body).hexdigest())
        self._refusals.put((repository, digest), answer)
        return Answer(HTTPStatus.OK, MANIFEST, digest=digest, length=len(answer.body), reason=answer.reason)

    def _find(self, reference: Reference, basic: BasicCredentials | None) -> Synthetic:
        """The synthetic image for what `reference` names upstream now, recorded as given."""
        descriptor, credentials = self._with_credentials(partial(self._upstream.head, reference), reference, basic)
        repository = reference.repository
        known = self._synthetics.get((repository, descriptor.digest))
        given = self._given.synthetic_of(known) if known else None
        if given is None:
            given = self._learn(reference, descriptor.digest, credentials)
            self._synthetics.put((repository, descriptor.digest), given.synthetic)
        self._settle(given, credentials)
        return self._serve(given)

    def _learn(self, reference: Reference, digest: Digest, credentials: BasicCredentials | None) -> GivenSynthetic:
        """Reads the model at `digest`, and records its synthetic image. Errors name `reference`."""
        model = self._model(reference, digest, credentials)
        original = model.manifest
        synthetic = synthesize(reference.repository, model)
        given = GivenSynthetic(
            synthetic=synthetic.manifest_digest,
            repository=reference.repository,
            original=original.digest,
            document=original.document,
            private=credentials is not None,
        )
        self._given.record(given)
        return given

    def _settle(self, given: GivenSynthetic, credentials: BasicCredentials | None) -> None:
        """Keeps the credentials that a model needed, and whether it needed any."""
        private = credentials is not None
        if given.private != private:
            self._given.record(replace(given, private=private))
        if credentials is not None:
            self._upstream.remember(given.repository, credentials)

    def _serve(self, given: GivenSynthetic) -> Synthetic:
        """The documents that were given; from now on its blobs are known by name."""
        synthetic = recall(given)
        config = document(synthetic.config, IMAGE_CONFIG, synthetic.config_digest)
        self._blobs.put((given.repository, synthetic.config_digest), config)
        layer = Refused(
            f"{given.repository}@{given.original}: a model has no layer to unpack, yet another snapshotter asked",
            "make modelvold the snapshotter in containerd's configuration, for pulls and for the pod's runtime (by a RuntimeClass the"
            " pod needs the annotation io.containerd.cri.runtime-handler too), then remove the image and pull it again",
        )
        self._blobs.put((given.repository, synthetic.layer_digest), refusal(layer))
        return synthetic

    def _by_digest(self, reference: Reference, digest: Digest, basic: BasicCredentials | None) -> Answer:
        repository = reference.repository
        told = self._refusals.get((repository, digest))
        if told is not None:
            return told
        given = self._given.synthetic_of(digest)
        if given is not None and given.repository == repository:
            if given.private:
                self._patience.ask(repository.host, partial(self._authorize, given, basic))
            synthetic = self._serve(given)
            return document(synthetic.manifest, MANIFEST, synthetic.manifest_digest)
        if not self._others.get(digest):
            self._patience.ask(repository.host, partial(self._refuse_original, reference, digest, basic))
        raise NotAModel(f"{reference}: not a model")

    def _authorize(self, given: GivenSynthetic, basic: BasicCredentials | None) -> None:
        original = Reference(given.repository, digest=given.original)
        _, credentials = self._with_credentials(partial(self._upstream.head, original), original, basic)
        self._settle(given, credentials)

    def _refuse_original(self, reference: Reference, digest: Digest, basic: BasicCredentials | None) -> None:
        """Raises Refused for a model's own digest: no other document can have it. NotAModel for anything else."""
        _, credentials = self._with_credentials(partial(self._upstream.head, reference), reference, basic)
        model = self._model(reference, digest, credentials)
        raise Refused(
            f"{reference}: this is the digest of the model's own manifest, which no image can have",
            f"ask for {reference.repository}:{pinned_tag(model.manifest.digest)} instead",
        )

    def _blob(self, reference: Reference) -> Answer:
        named = self._blobs.get((reference.repository, reference.digest)) if reference.digest else None
        return named or refused(
            HTTPStatus.NOT_FOUND,
            "BLOB_UNKNOWN",
            f"{reference}: no document given here names this blob",
            is_ordinary=True,
        )

    def _with_credentials(
        self, call: Callable[[BasicCredentials | None], T], reference: Reference, basic: BasicCredentials | None
    ) -> tuple[T, BasicCredentials | None]:
        """The result of `call`, and the caller's credentials if the node's own did not do.

        Raises Unauthorized, which challenges the caller to bring some, when it did not. Registries hide what one may
        not see in different ways: 401, 403 and, once credentials are there to be tried, 404.
        """
        try:
            return call(None), None
        except (Unauthorized, Forbidden, NotFound) as failure:
            if basic is None and isinstance(failure, Forbidden):
                raise Unauthorized(failure.message, failure.remedy) from failure
            if basic is None:
                raise
        return call(basic), basic

    def _model(self, reference: Reference, digest: Digest, credentials: BasicCredentials | None) -> Model:
        """The model at `digest`, or this node's in the index there. Raises NotAModel, and remembers that, and
        Malformed."""
        what = str(reference)
        seen = [digest]
        if self._others.get(digest):
            raise NotAModel(f"{what}: not a model")
        found = self._upstream.resolve(reference.at(digest), credentials)
        while isinstance(found, Index) and len(seen) <= _DEEPEST_INDEX:
            chosen = self._choose(found, what)
            if chosen is None:
                break
            seen.append(chosen)
            found = self._upstream.resolve(reference.at(chosen), credentials)
        if isinstance(found, Manifest) and is_model(found):
            return read(found, what)
        for other in seen:
            self._others.put(other, True)
        raise NotAModel(f"{what}: not a model", "check the reference, or pack the model as ModelPack")

    def _choose(self, index: Index, what: str) -> Digest | None:
        """This node's manifest; None when there is none and nothing says that it is an index of models."""
        try:
            return select(index, what, self._architecture).digest
        except NotFound as failure:
            if any(entry.artifact_type in MODEL_MANIFEST_TYPES for entry in index.manifests):
                raise Malformed(failure.message, failure.remedy) from failure
            return None
