from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import Malformed
from modelvold.oci.media_type import Compression, LayerType, Reading, Role, is_model_layer, layer_type

ROLES = ("weight", "weight.config", "doc", "code", "dataset")
FORMS = {
    "raw": (Reading.RAW, Compression.NONE),
    "tar": (Reading.TAR, Compression.NONE),
    "tar+gzip": (Reading.TAR, Compression.GZIP),
    "tar+zstd": (Reading.TAR, Compression.ZSTD),
}


@pytest.mark.parametrize(("vendor", "role", "form"), list(itertools.product(("cncf", "cnai"), ROLES, FORMS)))
def test_every_modelpack_type(vendor: str, role: str, form: str) -> None:
    media_type = f"application/vnd.{vendor}.model.{role}.v1.{form}"
    assert layer_type(media_type) == LayerType(Role(role), *FORMS[form])
    assert is_model_layer(media_type)


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.v1.tar", Compression.NONE),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression.GZIP),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression.ZSTD),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Compression.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar", Compression.NONE),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression.ZSTD),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression.GZIP),
    ],
)
def test_layers_of_images(media_type: str, compression: Compression) -> None:
    assert layer_type(media_type) == LayerType(Role.FILESYSTEM, Reading.TAR, compression)
    assert not is_model_layer(media_type)


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/octet-stream",
        "application/vnd.cncf.model.weight.v1.raw+gzip",
        "application/vnd.cncf.model.weight.v1.gguf",
        "application/vnd.cncf.model.weight.v2.raw",
        "application/vnd.cncf.model.weights.v1.raw",
        "application/vnd.cncf.model.weight.v1.tar+bzip2",
        "application/vnd.cncf.model.weight.v1.raw\n",
        "application/vnd.docker.image.rootfs.diff.tar+gzip",
        "application/vnd.cncf.model.config.v1+json",
    ],
)
def test_unknown_types_are_refused_by_name(media_type: str) -> None:
    with pytest.raises(Malformed) as caught:
        layer_type(media_type)
    assert repr(media_type) in caught.value.message
    assert "ModelPack" in caught.value.remedy
    assert not is_model_layer(media_type)


@given(st.text(max_size=80))
def test_no_text_does_anything_but_answer_or_refuse(media_type: str) -> None:
    try:
        layer_type(media_type)
    except Malformed:
        assert not is_model_layer(media_type)
