"""The synthetic image: what a model looks like to a container runtime that knows only images.

A pure function of the repository and the model's manifest, so that who serves it and who is asked to mount it come
to the same digests without telling each other. It has one layer, which nobody can fetch: its annotations become the
labels by which the snapshotter recognises the model. All digests of things that do not exist are domain-separated, so
that none is a real blob's.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from modelvold.errors import Malformed, Mismatch
from modelvold.oci.digest import Digest
from modelvold.oci.document import IMAGE_CONFIG, IMAGE_LAYER_TAR, MANIFEST, Manifest, parse, to_json
from modelvold.oci.modelpack import Model, read
from modelvold.oci.reference import Reference, Repository

#: Labels at Prepare: containerd passes a layer's annotations that begin with `containerd.io/snapshot/`.
LABEL_REFERENCE = "containerd.io/snapshot/modelvold.reference"
LABEL_MANIFEST = "containerd.io/snapshot/modelvold.manifest"

_PINNED = re.compile(r"modelvold-sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """The image's documents. `chain_id` is the only layer's diffID; `size` is the model's, in bytes, as the layer
    claims it."""

    manifest: bytes = field(repr=False)
    manifest_digest: Digest
    config: bytes = field(repr=False)
    config_digest: Digest
    layer_digest: Digest
    chain_id: Digest
    size: int


@dataclass(frozen=True, slots=True)
class GivenSynthetic:
    """The record that `synthetic`, a manifest's digest, was given for `original` in `repository`.

    A digest cannot be inverted: this is how one is served after its tag has moved, and the proof that labels naming
    it are ours. `document` is the original manifest. `private`: when it was given, the node's own credentials could
    not read the original.
    """

    synthetic: Digest
    repository: Repository
    original: Digest
    document: bytes = field(repr=False)
    private: bool


def synthesize(repository: Repository, model: Model) -> Synthetic:
    """The synthetic image of `model` as it lies in `repository`. Deterministic: the same on every node.

    Its chain is taken over the original's bytes, not its digest: containerd gives a chain that is on the node to whatever image
    names it, and a digest is often public where the manifest is not.
    """
    original = model.manifest.digest
    chain_id = _separated(b"modelvold/v1\0", repository, model.manifest.document)
    layer_digest = _separated(b"modelvold/v1/layer\0", repository, model.manifest.document)
    size = max(1, model.size)  # an empty layer would be an image's odd case, fetched and special-cased by some
    # The architecture is fixed, since a model has none; a single manifest is mounted whatever it says.
    config = to_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(chain_id)]},
        }
    )
    layer = _descriptor(IMAGE_LAYER_TAR, layer_digest, size) | {
        "annotations": {
            LABEL_REFERENCE: str(Reference(repository, digest=original)),
            LABEL_MANIFEST: str(original),
        },
    }
    config_digest = Digest.of(config)
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(IMAGE_CONFIG, config_digest, len(config)),
            "layers": [layer],
        }
    )
    return Synthetic(manifest, Digest.of(manifest), config, config_digest, layer_digest, chain_id, size)


@dataclass(frozen=True, slots=True)
class Forms:
    """How containerd can be asked for the model whose manifest is `original`.

    `tag` follows the registry's tag, and is empty where there is none. `pinned` means this model for ever. `synthetic` does too, as what
    containerd itself shows of it, but only where the façade was asked for one of the others before.
    """

    original: Digest
    tag: str
    pinned: str
    synthetic: str


def forms(reference: Reference, model: Model) -> Forms:
    """Of `model`, which is what `reference` named."""
    repository, original = reference.repository, model.manifest.digest
    has_tag = reference.tag and reference.digest is None and parse_pinned_tag(reference.tag) is None
    return Forms(
        original,
        str(reference) if has_tag else "",
        str(Reference(repository, pinned_tag(original))),
        str(Reference(repository, digest=synthesize(repository, model).manifest_digest)),
    )


def recall(given: GivenSynthetic) -> Synthetic:
    """The documents that were given, computed anew. Raises Mismatch when they do not come out the same (the record
    was made by another version), Malformed when the record holds no model's manifest."""
    what = f"{given.repository}@{given.original}"
    original = parse(given.document, what)
    if not isinstance(original, Manifest):
        raise Malformed(f"{what}: recorded as a model, but an index")
    synthetic = synthesize(given.repository, read(original, what))
    if synthetic.manifest_digest != given.synthetic or original.digest != given.original:
        raise Mismatch(
            f"{what}: recorded as {given.synthetic}, now {synthetic.manifest_digest}",
            f"ask for {given.repository}:{pinned_tag(given.original)} instead",
        )
    return synthetic


def pinned_tag(original: Digest) -> str:
    """The tag by which a model is asked for by its own manifest's digest."""
    return f"modelvold-sha256-{original.hex}"


def parse_pinned_tag(tag: str) -> Digest | None:
    """The inverse of `pinned_tag`; None for every other tag."""
    form = _PINNED.fullmatch(tag)
    return Digest(form.group(1)) if form else None


def _separated(domain: bytes, repository: Repository, document: bytes) -> Digest:
    return Digest(hashlib.sha256(domain + f"{repository}\0".encode() + document).hexdigest())


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}
