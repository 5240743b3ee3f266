"""Classes and order of files, the model's description, the artifact's documents: all pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import InvalidInput
from modelvold.oci import document, modelpack
from modelvold.oci.digest import Digest
from modelvold.oci.file_metadata import LATEST, nanoseconds
from modelvold.oci.media_type import Role
from modelvold.pack.artifact import Entry, build, rfc3339
from modelvold.pack.classify import natural_order, reason_to_skip, role_of
from modelvold.pack.describe import Description, describe

DESCRIPTION = Description("m", "2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    ("path", "size", "role"),
    [
        ("config.json", 1, Role.WEIGHT_CONFIG),
        ("1_Pooling/config.json", 1, Role.WEIGHT_CONFIG),
        ("tokenizer.model.v3", 1, Role.WEIGHT_CONFIG),
        ("tokenizer.model", 1, Role.WEIGHT_CONFIG),
        ("config.json.bak", 1, Role.WEIGHT_CONFIG),
        ("package.json", 1, Role.WEIGHT_CONFIG),
        ("MODEL.SAFETENSORS", 1, Role.WEIGHT),
        ("variables/variables.data-00000-of-00001", 1, Role.WEIGHT),
        ("q.gguf", 1, Role.WEIGHT),
        ("modeling_x.py", 1, Role.CODE),
        ("requirements-dev.txt", 1, Role.CODE),
        ("CMakeLists.txt", 1, Role.CODE),
        ("vocab.txt", 1, Role.DOC),
        ("LICENSE", 1, Role.DOC),
        ("readme", 1, Role.DOC),
        ("chat_template.jinja", 1, Role.CODE),
        ("blob", 128 << 20, Role.CODE),
        ("blob", (128 << 20) + 1, Role.WEIGHT),
        ("json", 1, Role.CODE),
    ],
)
def test_a_files_name_says_its_class(path: str, size: int, role: Role) -> None:
    assert role_of(path, size) is role


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        (".git", True),
        (".gitattributes", True),
        ("__pycache__", True),
        ("a.pyc", True),
        ("a.py", False),
        ("Modelfile", False),
    ],
)
def test_what_is_left_out(name: str, skipped: bool) -> None:
    assert bool(reason_to_skip(name)) is skipped


def test_natural_order_counts() -> None:
    names = ["m-10.safetensors", "m-2.safetensors", "m.safetensors", "10", "2", "a/1", "a/01"]
    assert sorted(names, key=natural_order) == [
        "2",
        "10",
        "a/01",
        "a/1",
        "m-2.safetensors",
        "m-10.safetensors",
        "m.safetensors",
    ]


@given(st.lists(st.text(), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)


@given(st.integers(0, LATEST))
def test_times_lose_nothing(mtime: int) -> None:
    assert nanoseconds(rfc3339(mtime)) == mtime


def test_the_description_is_what_the_folder_states() -> None:
    config = {
        "model_type": "qwen3",
        "transformers_version": "4.51",
        "text_config": {"dtype": "bfloat16"},
        "quantization_config": {"quant_method": "awq"},
    }
    files = [("a.bin", Role.WEIGHT, 10), ("b.safetensors", Role.WEIGHT, 20), ("big.json", Role.WEIGHT_CONFIG, 99)]
    said = describe("m", "t", files, json.dumps(config).encode())
    assert said == Description("m", "t", "qwen3", "transformer", "safetensors", "bfloat16", "awq")


@pytest.mark.parametrize(
    "config", [None, b"", b"[]", b"{", b'{"model_type": 3, "quantization_config": []}', b"\xff", b"[" * 99999]
)
def test_a_config_that_states_nothing_gives_nothing(config: bytes | None) -> None:
    assert describe("m", "t", [("a.xyz", Role.WEIGHT, 1)], config) == Description("m", "t")


def test_the_manifest_is_read_back_as_it_was_meant() -> None:
    entries = [
        Entry("z/readme \u00fc\n.md", Role.DOC, Digest.of(b"d"), 1, 0o100640, 5),
        Entry("w-10.bin", Role.WEIGHT, Digest.of(b"w10"), 3, 0o755, 1),
        Entry("w-2.bin", Role.WEIGHT, Digest.of(b"w2"), 2, 0o600, 1_700_000_000_123_456_789),
        Entry("run.py", Role.CODE, Digest.of(b"c"), 1, 0o644, 0),
        Entry("config.json", Role.WEIGHT_CONFIG, Digest.of(b""), 0, 0o644, 0),
    ]
    artifact = build(entries, DESCRIPTION)
    manifest = document.parse(artifact.manifest, "test")
    assert isinstance(manifest, document.Manifest)
    model = modelpack.read(manifest, "test")
    assert [layer.path for layer in model.layers] == [
        "config.json",
        "w-2.bin",
        "w-10.bin",
        "run.py",
        "z/readme \u00fc\n.md",
    ]
    by_path = {entry.path: entry for entry in entries}
    for layer in model.layers:
        entry = by_path[layer.path]
        assert (layer.role, layer.descriptor.digest, layer.descriptor.size) == (entry.role, entry.digest, entry.size)
        assert (layer.mode, layer.mtime) == (entry.mode & 0o777, entry.mtime)
    config = json.loads(artifact.config)
    assert config["modelfs"] == {"type": "layers", "diffIds": [str(layer.descriptor.digest) for layer in model.layers]}
    assert config["descriptor"] == {"createdAt": "2026-01-02T03:04:05Z", "name": "m"}
    assert config["config"] == {}
    assert manifest.config.digest == Digest.of(artifact.config)


def test_what_a_manifest_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no files"):
        build([], DESCRIPTION)
    many = [Entry(f"{n}", Role.CODE, Digest.of(b""), 0, 0o644, 0) for n in range(10_001)]
    with pytest.raises(InvalidInput, match="10001 files"):
        build(many, DESCRIPTION)
    long = [Entry(f"{n:03d}/{'d' * 250}/" * 15 + "f", Role.CODE, Digest.of(b""), 0, 0o644, 0) for n in range(1500)]
    with pytest.raises(InvalidInput, match="a registry must take"):
        build(long, DESCRIPTION)
