from __future__ import annotations

from typing import Any

import pytest
from modelvold.errors import Malformed
from modelvold.layer.naming import named
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor
from modelvold.oci.media_type import Compression, Reading, Role
from modelvold.oci.modelpack import ModelLayer, read

from tests.oci.models import CNCF, layer, manifest

FOLDER = Entry("weights", Kind.DIRECTORY)


def of(path: str, role: Role = Role.WEIGHT, said_size: int | None = None) -> ModelLayer:
    descriptor = Descriptor("application/x", Digest.of(b"blob"), 4096)
    return ModelLayer(descriptor, role, Reading.TAR, Compression.NONE, path, 0o644, 0, said_size)


def toc(*entries: Entry | str) -> Toc:
    return Toc(tuple(Entry(e, size=100) if isinstance(e, str) else e for e in entries), 4096)


def paths(found: Toc) -> list[str]:
    return [entry.path for entry in found.entries]


def test_a_bare_name_goes_where_the_annotation_says() -> None:
    """AIKit."""
    found = named(toc("m.gguf"), of("weights/deep/m.gguf", said_size=100))
    assert found == toc("weights/deep/m.gguf")


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        # As modctl, llmman and KitOps write them.
        (["weights/m.gguf"], "weights/m.gguf"),
        (["m.gguf"], "m.gguf"),
        ([FOLDER, "weights/m.gguf"], "weights/m.gguf"),
        # A folder of one file, and of many.
        ([FOLDER, "weights/m.gguf"], "weights"),
        (["weights/deep/m.gguf"], "weights"),
        (["weights/a", "other/b"], "weights"),
        # Two names make the annotation one among others.
        (["m.gguf", "other"], "weights/m.gguf"),
        (["m.gguf", Entry("other", Kind.HARDLINK, link="m.gguf")], "weights/m.gguf"),
        # Nothing was said, or nothing is there.
        (["m.gguf"], ""),
        ([FOLDER], "weights/m.gguf"),
        ([Entry("m.gguf", Kind.SYMLINK, link="x")], "weights/m.gguf"),
        ([], "weights/m.gguf"),
    ],
)
def test_a_tars_own_names_stay(entries: list[Entry | str], path: str) -> None:
    assert named(toc(*entries), of(path)) == toc(*entries)


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        (["other.gguf"], "weights/m.gguf"),
        (["else/m.gguf"], "weights/m.gguf"),
        (["weights-2/m.gguf"], "weights"),
        (["m.gguf"], "m"),
        ([FOLDER, "m.gguf"], "weights/m.gguf"),
    ],
)
def test_another_path_than_the_annotations_is_a_contradiction(entries: list[Entry | str], path: str) -> None:
    with pytest.raises(Malformed, match=r"layer \w{12}: by its annotation") as caught:
        named(toc(*entries), of(path))
    held = next(entry for entry in entries if isinstance(entry, str))
    assert repr(path) in caught.value.message
    assert repr(held) in caught.value.message
    assert "repack" in caught.value.remedy


def test_sizes() -> None:
    for said in (None, 100, 4096):
        assert named(toc("m"), of("m", said_size=said)) == toc("m")
        assert named(toc("m"), of("a/m", said_size=said)) == toc("a/m")
    for layer_of_one in (of("m", said_size=101), of("a/m", said_size=0)):
        with pytest.raises(Malformed, match=r"'(a/)?m', of (101|0) bytes, its file '(a/)?m' has 100"):
            named(toc("m"), layer_of_one)
    # Of a folder, nobody knows what its size should be.
    assert named(toc("d/m"), of("d", said_size=17)) == toc("d/m")


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.WEIGHT])
def test_categories_say_nothing(role: Role) -> None:
    assert named(toc("tokenizer.json"), of("config", role, 17)) == toc("tokenizer.json")
    assert named(toc("m"), of("a/m", role)) == toc("m")


@pytest.mark.parametrize("path", [".wh.m", "a/.wh..wh..opq", "a/.wh.b"])
def test_a_whiteout_in_an_image_layer_is_refused(path: str) -> None:
    with pytest.raises(Malformed, match="a whiteout; the layers of a model delete nothing") as caught:
        named(toc("a", path), of("", Role.FILESYSTEM))
    assert repr(path) in caught.value.message
    assert paths(named(toc(path), of("", Role.DOC))) == [path]
    assert paths(named(toc("a/.wh/b", "x.wh.y"), of("", Role.FILESYSTEM))) == ["a/.wh/b", "x.wh.y"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({}, 2), ({"size": 77}, 77), ({"typeflag": 5, "size": 4096}, None), ({"size": "x"}, None)],
)
def test_what_a_layer_says_of_its_size(metadata: dict[str, Any], expected: int | None) -> None:
    described = layer("weights", mediaType=f"{CNCF}.weight.v1.tar", metadata=metadata)
    assert read(manifest(described), "here/model:1").layers[0].said_size == expected
