"""Labels are not proof: what shows that a Prepare speaks of a model which containerd really pulled. Pure.

A layer's annotations become labels, and any image's author can write them, so an image could name somebody else's
model and have it mounted with the node's credentials. What an author cannot write is the digest of the manifest that
containerd pulled (`cri.manifest-digest`, set by containerd over whatever the annotations say). The labels hold only if
that digest is one which our façade has given for just this model of just this repository. The chain that is asked for
must be that image's too: its name outlives this Prepare, and everybody who asks for it later gets what is committed
now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelvold.errors import InvalidInput, Refused
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference
from modelvold.oci.synthetic import LABEL_MANIFEST, LABEL_REFERENCE, GivenSynthetic, recall

#: The chain that a Prepare of an image's layer shall end in.
LABEL_TARGET = "containerd.io/snapshot.ref"
LABEL_IMAGE_REFERENCE = "containerd.io/snapshot/cri.image-ref"
LABEL_IMAGE_MANIFEST = "containerd.io/snapshot/cri.manifest-digest"

_ANNOTATE = 'set enable_remote_snapshot_annotations = "true" in the exports of the proxy plugin (see the README)'
_ASK_THE_FACADE = "see that hosts.toml of its registry names the façade, remove the image and pull it again"


@dataclass(frozen=True, slots=True)
class Claim:
    """What the labels say. `image` is the reference that was pulled, `pulled` its manifest's digest."""

    target: str
    image: Reference
    pulled: Digest
    reference: Reference
    original: Digest


def is_claim(labels: Mapping[str, str]) -> bool:
    """Whether a Prepare with these labels asks for a model's layer."""
    return LABEL_TARGET in labels and (LABEL_REFERENCE in labels or LABEL_MANIFEST in labels)


def read_claim(labels: Mapping[str, str]) -> Claim:
    """The claim in `labels`. Raises Refused when one of them is missing or is not what it should be."""
    for label in (LABEL_IMAGE_REFERENCE, LABEL_IMAGE_MANIFEST):
        if label not in labels:
            raise Refused(
                f"a model's layer, but containerd does not say of which image ({label} is missing)", _ANNOTATE
            )
    try:
        return Claim(
            target=labels[LABEL_TARGET],
            image=Reference.parse(labels[LABEL_IMAGE_REFERENCE]),
            pulled=Digest.parse(labels[LABEL_IMAGE_MANIFEST]),
            reference=Reference.parse(labels.get(LABEL_REFERENCE, "")),
            original=Digest.parse(labels.get(LABEL_MANIFEST, "")),
        )
    except InvalidInput as error:
        image = labels[LABEL_IMAGE_REFERENCE][:300]
        raise Refused(f"image {image!r}: its layer's annotations name no model: {error}", _ASK_THE_FACADE) from error


def prove(claim: Claim, given: GivenSynthetic | None) -> None:
    """Returns when `given`, what the façade gave under `claim.pulled`, bears the claim out. Raises Refused, saying what
    does not agree; Mismatch when it was given by another version of this program."""
    named = claim.reference
    if given is None:
        raise _refused(claim, f"but its manifest {claim.pulled} is not one that the façade of this node gave")
    if given.original != claim.original or named.digest != claim.original:
        raise _refused(claim, f"but its manifest {claim.pulled} was given for {given.original}")
    if not given.repository == claim.image.repository == named.repository:
        raise _refused(claim, f"but was pulled from {claim.image.repository}")
    if claim.target != str(recall(given).chain_id):
        raise _refused(claim, f"but its layer is {claim.target[:100]}, not the model's")


def _refused(claim: Claim, why: str) -> Refused:
    named = f"{claim.reference.repository}@{claim.original}"
    return Refused(f"image {claim.image}: its layer's annotations name the model {named}, {why}", _ASK_THE_FACADE)
