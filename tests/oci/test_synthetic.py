from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import Malformed, Mismatch
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest, parse
from modelvold.oci.modelpack import read
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import (
    LABEL_MANIFEST,
    LABEL_REFERENCE,
    GivenSynthetic,
    parse_pinned_tag,
    pinned_tag,
    recall,
    synthesize,
)

from tests.oci.models import index_document, layer, manifest

REPOSITORY = Repository("reg.example:5000", "team/model")
MODEL = read(manifest(layer("a", b"123"), layer("b", b"4567")), "here/model:1")


def given_of(repository: Repository = REPOSITORY) -> GivenSynthetic:
    original = MODEL.manifest
    return GivenSynthetic(
        synthesize(repository, MODEL).manifest_digest, repository, original.digest, original.document, False
    )


def test_it_is_an_image_of_one_layer() -> None:
    synthetic = synthesize(REPOSITORY, MODEL)
    found = parse(synthetic.manifest, "synthetic")
    assert isinstance(found, Manifest)
    assert found.digest == synthetic.manifest_digest
    assert (found.config.digest, found.config.size) == (Digest.of(synthetic.config), len(synthetic.config))
    assert found.config.media_type == "application/vnd.oci.image.config.v1+json"
    (only,) = found.layers
    assert (only.media_type, only.digest, only.size) == (
        "application/vnd.oci.image.layer.v1.tar",
        synthetic.layer_digest,
        7,
    )
    assert dict(only.annotations) == {
        LABEL_REFERENCE: f"reg.example:5000/team/model@{MODEL.manifest.digest}",
        LABEL_MANIFEST: str(MODEL.manifest.digest),
    }
    config = json.loads(synthetic.config)
    assert config["os"] == "linux"
    assert config["rootfs"] == {"type": "layers", "diff_ids": [str(synthetic.chain_id)]}


def test_its_digests_belong_to_one_repository_and_one_manifest() -> None:
    other = read(manifest(layer("a", b"other")), "here/model:1")
    made = [
        synthesize(REPOSITORY, MODEL),
        synthesize(Repository("reg.example:5000", "team/model2"), MODEL),
        synthesize(Repository("elsewhere.example", "team/model"), MODEL),
        synthesize(REPOSITORY, other),
    ]
    digests = [d for s in made for d in (s.manifest_digest, s.config_digest, s.layer_digest, s.chain_id)]
    assert len(set(digests)) == len(digests)
    assert MODEL.layers[0].descriptor.digest not in digests
    assert synthesize(REPOSITORY, MODEL) == made[0]


def test_the_digest_is_the_same_on_every_node_and_in_every_version() -> None:
    """Changing it would orphan every snapshot and every pinned digest there is."""
    assert (
        str(synthesize(REPOSITORY, MODEL).manifest_digest)
        == "sha256:d3cc309ce73c4dc36f5517cf6604b562622ceb9bd8d7fbdcc1b050567a4bd687"
    )


def test_an_empty_model_still_claims_a_byte() -> None:
    model = read(manifest(layer("empty", b"")), "here/model:1")
    assert (model.size, synthesize(REPOSITORY, model).size) == (0, 1)


def test_what_was_given_is_recalled() -> None:
    assert recall(given_of()) == synthesize(REPOSITORY, MODEL)


def test_a_record_that_does_not_agree_is_refused() -> None:
    given = given_of()
    for wrong in (
        replace(given, synthetic=Digest.of(b"")),
        replace(given, original=Digest.of(b"")),
        replace(given, repository=Repository("reg.example", "other")),
    ):
        with pytest.raises(Mismatch, match=str(wrong.original)):
            recall(wrong)
    with pytest.raises(Malformed, match="an index"):
        recall(replace(given, document=index_document()))


@given(st.binary(max_size=20))
def test_pinned_tags_come_back(content: bytes) -> None:
    digest = Digest.of(content)
    tag = pinned_tag(digest)
    assert parse_pinned_tag(tag) == digest
    assert len(tag) <= 128


@pytest.mark.parametrize(
    "tag", ["latest", "modelvold-sha256-", "modelvold-sha256-" + "A" * 64, "modelvold-sha256-" + "0" * 65]
)
def test_other_tags_are_not_pinned(tag: str) -> None:
    assert parse_pinned_tag(tag) is None
