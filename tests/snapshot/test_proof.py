from __future__ import annotations

from pathlib import Path

import pytest
from modelvold.errors import Refused
from modelvold.oci.synthetic import LABEL_MANIFEST, LABEL_REFERENCE
from modelvold.snapshot.proof import (
    LABEL_IMAGE_MANIFEST,
    LABEL_IMAGE_REFERENCE,
    LABEL_TARGET,
    is_claim,
    prove,
    read_claim,
)

from tests.lab.snapshots import Shelf

SHELF = Shelf(Path("/nowhere"))
MINE = SHELF.give("registry.example/mine/model", "mine")
THEIRS = SHELF.give("registry.example/theirs/model", "theirs")
COPY = SHELF.give("registry.example/mine/copy", "theirs")


def check(**changes: str | None) -> None:
    labels = MINE.labels
    for name, value in changes.items():
        label = globals()[name]
        if value is None:
            del labels[label]
        else:
            labels[label] = value
    claim = read_claim(labels)
    prove(claim, SHELF.synthetic_of(claim.pulled))


def test_what_the_facade_gave_is_proven() -> None:
    check()
    check(LABEL_IMAGE_REFERENCE="registry.example/mine/model:another-tag")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"LABEL_IMAGE_MANIFEST": "sha256:" + "0" * 64}, "not one that the façade of this node gave"),
        ({"LABEL_MANIFEST": str(THEIRS.original)}, "was given for"),
        ({"LABEL_REFERENCE": f"registry.example/mine/model@{THEIRS.original}"}, "was given for"),
        ({"LABEL_REFERENCE": "registry.example/mine/model:v1"}, "was given for"),
        ({"LABEL_REFERENCE": f"registry.example/theirs/model@{MINE.original}"}, "was pulled from"),
        ({"LABEL_IMAGE_REFERENCE": "registry.example/theirs/model:v1"}, "was pulled from"),
        ({"LABEL_IMAGE_REFERENCE": "other.example/mine/model:v1"}, "was pulled from"),
        ({"LABEL_TARGET": THEIRS.target}, "not the model's"),
        ({"LABEL_IMAGE_REFERENCE": None}, "does not say of which image"),
        ({"LABEL_IMAGE_MANIFEST": None}, "does not say of which image"),
        ({"LABEL_REFERENCE": None}, "name no model"),
        ({"LABEL_MANIFEST": None}, "name no model"),
        ({"LABEL_MANIFEST": "sha256:short"}, "name no model"),
        ({"LABEL_IMAGE_REFERENCE": "UPPER/../x"}, "name no model"),
    ],
)
def test_everything_else_is_refused(changes: dict[str, str | None], why: str) -> None:
    with pytest.raises(Refused, match=why) as refusal:
        check(**changes)
    assert refusal.value.remedy


def test_somebody_elses_model_under_ones_own_manifest() -> None:
    """The author of COPY names the model that THEIRS has and he cannot read; all he controls is annotations."""
    labels = COPY.labels | {LABEL_REFERENCE: THEIRS.labels[LABEL_REFERENCE]}
    claim = read_claim(labels)
    with pytest.raises(Refused, match=r"was pulled from registry\.example/mine/copy"):
        prove(claim, SHELF.synthetic_of(claim.pulled))


def test_an_ordinary_layer_claims_nothing() -> None:
    ordinary = {LABEL_TARGET: "sha256:abc", LABEL_IMAGE_REFERENCE: "x", LABEL_IMAGE_MANIFEST: "y"}
    assert not is_claim(ordinary)
    assert not is_claim({LABEL_REFERENCE: "x", LABEL_MANIFEST: "y"})
    assert is_claim(ordinary | {LABEL_MANIFEST: ""})
    assert is_claim(MINE.labels)
