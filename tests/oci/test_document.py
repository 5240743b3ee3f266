from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import InvalidInput, Malformed
from modelvold.oci import document
from modelvold.oci.digest import Digest
from modelvold.oci.document import Index, Manifest, parse

from tests.oci.models import document as model_document
from tests.oci.models import entry, image, index_document, layer


def test_a_manifest_keeps_its_bytes_and_their_digest() -> None:
    content = model_document(layer("a"), layer("b/c", b"bytes"))
    manifest = parse(content, "here/m:1")
    assert isinstance(manifest, Manifest)
    assert manifest.document == content
    assert manifest.digest == Digest.of(content)
    assert [descriptor.size for descriptor in manifest.layers] == [2, 5]
    assert manifest.layers[1].annotations["org.cncf.model.filepath"] == "b/c"


def test_an_index_lists_manifests_with_platforms() -> None:
    found = parse(index_document(entry(image(), "linux/amd64"), entry(image("b"))), "here/m:1")
    assert isinstance(found, Index)
    assert [str(each.platform or "none") for each in found.manifests] == ["linux/amd64", "none"]


def test_old_documents_without_media_types_are_read() -> None:
    fields: dict[str, Any] = json.loads(model_document(layer()))
    del fields["mediaType"], fields["artifactType"], fields["layers"][0]["mediaType"]
    manifest = parse(json.dumps(fields).encode(), "here/m:1")
    assert isinstance(manifest, Manifest)
    assert (manifest.media_type, manifest.artifact_type, manifest.layers[0].media_type) == (document.MANIFEST, "", "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schemaVersion": 1, "config": {"digest": "sha256:%s", "size": 1}}' % (b"0" * 64),
        model_document(layer(digest="sha256:short")),
        model_document(layer(digest="md5:" + "0" * 32)),
        model_document(layer(size=-1)),
        model_document(layer(size=1 << 51)),
        model_document(layer(size="2")),
        index_document({"digest": "sha256:", "size": 1}),
    ],
)
def test_what_is_no_manifest_is_named(content: bytes) -> None:
    with pytest.raises(Malformed, match="here/m:1"):
        parse(content, "here/m:1")


def test_bounds_are_checked() -> None:
    with pytest.raises(Malformed, match="4 MiB"):
        parse(b" " * (document.LARGEST_DOCUMENT + 1), "here/m:1")
    tiny = {"digest": "sha256:" + "0" * 64, "size": 1}
    with pytest.raises(Malformed, match="10001 layers"):
        parse(model_document(*[tiny] * (document.MOST_LAYERS + 1)), "here/m:1")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        parse(content, "here/m:1")


@given(st.text(max_size=80))
def test_only_sha256_in_lower_case_is_a_digest(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest.parse(text)
    assert str(Digest.parse(str(Digest.of(text.encode())))) == str(Digest.of(text.encode()))
