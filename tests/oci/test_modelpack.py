from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelvold.errors import Malformed, NotAModel, NotFound
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest, parse
from modelvold.oci.media_type import Compression, Reading, Role
from modelvold.oci.modelpack import is_model, read, safe_path, select

from tests.oci.models import CNAI, CNCF, entry, image, index, layer, manifest

WHAT = "here/model:1"
MODEL = f"{CNCF}.manifest.v1+json"


def test_a_model_as_modctl_writes_it() -> None:
    model = read(
        manifest(
            layer("config.json", mediaType=f"{CNCF}.weight.config.v1.raw"),
            layer("sub dir/model.safetensors", b"weights", metadata={"mode": 0o640}),
        ),
        WHAT,
    )
    config, weights = model.layers
    assert (config.path, config.role, config.archive, config.compression) == (
        "config.json",
        Role.WEIGHT_CONFIG,
        Reading.RAW,
        Compression.NONE,
    )
    assert (weights.path, weights.mode, weights.mtime) == (
        "sub dir/model.safetensors",
        0o640,
        1_751_365_230_123_456_789,
    )
    assert model.size == 9


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"artifactType": f"{CNAI}.manifest.v1+json"}, True),
        ({"artifactType": ""}, True),
        ({"artifactType": "", "config": "empty"}, True),
        ({"artifactType": "", "config": "empty", "layers": []}, False),
        ({"artifactType": "application/vnd.other", "config": "empty", "layers": "mixed"}, False),
    ],
)
def test_how_a_model_is_recognised(fields: dict[str, Any], expected: bool) -> None:
    """By artifact type, then config type, then all layers' types."""
    if fields.get("config") == "empty":
        fields = fields | {
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
        }
    if fields.get("layers") == "mixed":
        fields = fields | {"layers": [layer(), layer("b", mediaType="text/plain")]}
    assert is_model(manifest(layer(), **fields)) is expected


def test_an_image_is_no_model() -> None:
    found = parse(image(), WHAT)
    assert isinstance(found, Manifest)
    assert not is_model(found)
    with pytest.raises(NotAModel, match=WHAT):
        read(found, WHAT)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"org.cncf.model.filepath": "a", "org.cnai.model.filepath": "b", "org.opencontainers.image.title": "c"}, "a"),
        ({"org.cnai.model.filepath": "b", "org.opencontainers.image.title": "c"}, "b"),
        ({"org.opencontainers.image.title": "c"}, "c"),
    ],
)
def test_where_a_name_comes_from(annotations: dict[str, str], expected: str) -> None:
    assert read(manifest(layer(annotations=annotations)), WHAT).layers[0].path == expected


def test_tar_layers_are_read_and_their_annotation_names_no_file() -> None:
    model = read(
        manifest(
            layer("config", b"1", mediaType=f"{CNCF}.doc.v1.tar", metadata={"typeflag": 5, "size": 4711}),
            layer("config", b"2", mediaType=f"{CNCF}.code.v1.tar+gzip"),
            layer(None, b"3", mediaType=f"{CNAI}.dataset.v1.tar+zstd"),
            layer("config", b"4"),
        ),
        WHAT,
    )
    assert [(one.archive, one.compression, one.path) for one in model.layers] == [
        (Reading.TAR, Compression.NONE, "config"),
        (Reading.TAR, Compression.GZIP, "config"),
        (Reading.TAR, Compression.ZSTD, ""),
        (Reading.RAW, Compression.NONE, "config"),
    ]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (layer("m.gguf", mediaType="application/vnd.cncf.model.weight.v1.gguf"), ["m.gguf", "v1.gguf", "not known"]),
        (layer("m", metadata={"size": 3}), ["'m'", "size lies", "3 bytes", "2 by"]),
        (layer("m", metadata={"typeflag": 5}), ["'m'", "no regular file"]),
        (layer(None), ["names nothing"]),
        (layer("/etc/passwd"), ["/etc/passwd", "absolute"]),
        (layer("a/../../etc"), ["a/../../etc", "'..'"]),
    ],
)
def test_what_is_wrong_with_a_layer_is_said(broken: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(Malformed) as caught:
        read(manifest(layer("good"), broken), WHAT)
    for text in [WHAT, "layer 1", *said]:
        assert text in caught.value.message
    assert "producer" in caught.value.remedy


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(Malformed, match="no layers"):
        read(manifest(), WHAT)


def test_two_layers_with_one_path() -> None:
    with pytest.raises(Malformed, match=r"layers 0 \(\w{12}\) and 2 \(\w{12}\) have one path 'a'"):
        read(manifest(layer("a", b"1"), layer("b"), layer("../a", b"2")), WHAT)
    model = read(manifest(layer("a", b"1"), layer("b", b"1"), layer("./a", b"1")), WHAT)
    assert [one.path for one in model.layers] == ["a", "b"]
    assert model.size == 2


def test_unreadable_metadata_does_not_stop_a_model() -> None:
    annotations = {"org.cncf.model.filepath": 'a"b', "org.cncf.model.file.metadata+json": '{"name": "a"b"}'}
    one = read(manifest(layer(annotations=annotations)), WHAT).layers[0]
    assert (one.path, one.mode, one.mtime) == ('a"b', 0o644, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a"),
        ("./a", "a"),
        ("../../a/b", "a/b"),
        (".././../a", "a"),
        ("a/./b//c", "a/b/c"),
        ("...", "..."),
        ("..a/b..", "..a/b.."),
        ("x" * 255, "x" * 255),
        ("/".join("d" * 256), "/".join("d" * 256)),
        ("a\nb", "a\nb"),
        ("ü/模型", "ü/模型"),
    ],
)
def test_paths_that_are_safe(text: str, expected: str) -> None:
    assert safe_path(text) == expected


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "nothing"),
        (".", "nothing"),
        ("../..", "nothing"),
        ("//", "nothing"),
        ("/a", "absolute"),
        ("..//a", "absolute"),
        ("a/", "folder"),
        ("a/.", "folder"),
        ("a/..", r"'\.\.'"),
        ("a/../b", r"'\.\.'"),
        ("a\0b", "NUL"),
        ("x" * 256, "255"),
        ("ü" * 128, "255"),
        ("/".join(["x" * 255] * 17), "4095"),
        ("/".join("d" * 257), "256"),
        ("\ud800", "Unicode"),
    ],
)
def test_paths_that_are_refused(text: str, cause: str) -> None:
    with pytest.raises(Malformed, match=cause):
        safe_path(text)


def test_paths_that_came_from_bytes() -> None:
    """Annotations are Unicode; the names of a tar are bytes of any kind."""
    assert safe_path("./\udcff/a", "surrogateescape") == "\udcff/a"
    assert safe_path("\udcff" * 255, "surrogateescape") == "\udcff" * 255
    with pytest.raises(Malformed, match="255"):
        safe_path("\udcff" * 256, "surrogateescape")
    for text, errors in (("\udcff", "strict"), ("\ud800", "surrogateescape")):
        with pytest.raises(Malformed, match="Unicode"):
            safe_path(text, errors)


@given(
    st.lists(st.sampled_from(["", ".", "..", "a", "b c", "\0", "ü"]), max_size=8).map("/".join) | st.text(max_size=50)
)
@example("./../a")
def test_a_path_is_below_the_volume_or_refused(text: str) -> None:
    try:
        path = safe_path(text)
    except Malformed:
        return
    assert not set(path.split("/")) & {"", ".", ".."}
    assert "\0" not in path
    assert safe_path(path) == path


@pytest.mark.parametrize(
    ("said", "path"),
    [("weights/", "weights"), ("a/b/./", "a/b"), (".", ""), ("./", ""), ("/", ""), ("", ""), ("../x/", "x")],
)
def test_a_tars_annotation_may_name_a_folder(said: str, path: str) -> None:
    """KitOps writes the Kitfile's path, which may be one."""
    tar = layer(said, mediaType=f"{CNCF}.weight.v1.tar")
    assert read(manifest(tar), WHAT).layers[0].path == path


def test_a_long_run_of_dots_takes_no_time() -> None:
    """Time that grows with its square would be minutes here."""
    assert safe_path("../" * 1_000_000 + "a") == "a"
    with pytest.raises(Malformed):
        read(manifest(layer("a" + "/" * 1_000_000 + "/../b", mediaType=f"{CNCF}.weight.v1.tar")), WHAT)


def test_selecting_from_an_index() -> None:
    amd, arm, model, other = (image(seed) for seed in ("amd", "arm", "model", "other"))
    both = index(entry(model, artifact_type=MODEL), entry(arm, "linux/arm64"), entry(amd, "linux/amd64"))
    assert select(both, WHAT, "amd64").digest == Digest.of(amd)
    assert select(both, WHAT, "arm64").digest == Digest.of(arm)
    assert select(both, WHAT, "riscv64").digest == Digest.of(model)
    assert select(index(entry(other, "windows/amd64")), WHAT, "amd64").digest == Digest.of(other)
    preferred = index(entry(amd, "linux/amd64"), entry(model, "linux/amd64", MODEL))
    assert select(preferred, WHAT, "amd64").digest == Digest.of(model)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry(image("a"), artifact_type=MODEL), entry(image("b"), artifact_type=MODEL)],
        [entry(image("a"), "linux/arm64"), entry(image("b"), "darwin/amd64")],
    ],
)
def test_what_an_index_has_is_listed(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(NotFound) as caught:
        select(index(*entries), WHAT, "amd64")
    assert WHAT in caught.value.message
    for each in entries:
        assert each["digest"] in caught.value.message


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=40), max_size=4), st.text(max_size=40))
def test_any_name_is_read_or_the_layer_is_named(annotations: dict[str, str], name: str) -> None:
    document = manifest(layer(annotations=annotations | {"org.cncf.model.filepath": name}))
    try:
        expected = safe_path(name)
    except Malformed:
        with pytest.raises(Malformed, match=f"{WHAT}: layer 0"):
            read(document, WHAT)
    else:
        assert [one.path for one in read(document, WHAT).layers] == [expected]
