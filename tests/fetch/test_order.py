from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.fetch.order import Cut, Known, Survey
from modelvold.fetch.stretch import Stretch
from modelvold.layer.cut import cut
from modelvold.layer.extent import BLOCK, ContentOffset, Extent, padded
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Toc
from modelvold.volume.tree import merge

from tests.lab.debian import Unavailable, real_model

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOTHING = Known()
SHARD = 98 * MIB  # seven segments: 2 MiB, then 16 each


@dataclass
class Model:
    """Layers that are one file each, numbered from 100 in their order."""

    files: Mapping[str, int]

    def __post_init__(self) -> None:
        self.paths = {100 + n: path for n, path in enumerate(self.files)}
        tocs = [toc_of_raw(path, size, 0o644, 0) for path, size in self.files.items()]
        self.survey = Survey(merge(tocs), [Cut(100 + n, cut(toc)) for n, toc in enumerate(tocs)])

    def order(self, known: Known = NOTHING) -> list[str]:
        return [f"{self.paths[s.content]} {s.first}:{s.end}" for s in self.survey.order(known)]

    def learn(self, path: str, answer: bytes, known: Known = NOTHING) -> Known:
        (question,) = [question for question in self.survey.questions if question.path == path.encode()]
        return self.survey.learn(known, question, answer)


def _weight_map(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"t{n}": file for n, file in enumerate(files)}}).encode()


def test_a_model_as_it_is_published() -> None:
    """Small files, heads, weights; what is published twice comes last, and documents before any of it."""
    model = Model(
        {
            "model-2.safetensors": SHARD,
            "model-10.safetensors": SHARD,
            "consolidated.safetensors": SHARD,
            "original/params.json": 300,
            "original/model.pth": SHARD,
            "pytorch_model.bin": SHARD,
            "README.md": 5 * KIB,
            "modeling.py": 40 * KIB,
            "onnx/model.onnx": SHARD,
            "tokenizer.json": 30 * MIB,
            "config.json": KIB,
            "model-1.safetensors": 3 * MIB,
        }
    )
    assert model.order() == [
        "original/params.json 0:1",
        "tokenizer.json 0:2",
        "config.json 0:1",
        "modeling.py 0:1",
        "model-1.safetensors 0:1",
        "README.md 0:1",
        "consolidated.safetensors 0:1",
        "model-2.safetensors 0:1",
        "model-10.safetensors 0:1",
        "original/model.pth 0:1",
        "original/model.pth 6:7",
        "pytorch_model.bin 0:1",
        "pytorch_model.bin 6:7",
        "model-2.safetensors 1:7",
        "model-10.safetensors 1:7",
        "onnx/model.onnx 0:7",
        "consolidated.safetensors 1:7",
        "original/model.pth 1:6",
        "pytorch_model.bin 1:6",
    ]


def test_what_a_weight_map_does_not_name_comes_last() -> None:
    """In its folder alone; and one that names nothing here says nothing."""
    index = "model.safetensors.index.json"
    model = Model(
        {index: 900, "a.safetensors": SHARD, "b.safetensors": SHARD, "c/d.safetensors": SHARD, "x.onnx": SHARD}
    )
    heads = [f"{path} 0:1" for path in (index, "a.safetensors", "b.safetensors", "c/d.safetensors")]
    assert model.order()[4:] == ["a.safetensors 1:7", "b.safetensors 1:7", "c/d.safetensors 1:7", "x.onnx 0:7"]
    known = model.learn(index, _weight_map("b.safetensors", "absent.safetensors", "c/absent"))
    assert model.order(known) == [
        *heads,
        "b.safetensors 1:7",
        "c/d.safetensors 1:7",
        "x.onnx 0:7",
        "a.safetensors 1:7",
    ]
    both = model.learn(index, _weight_map("a.safetensors"), known)
    assert model.order(both) == model.order(), "two maps of one folder name both"
    for answer in (b"", b"[", _weight_map(), _weight_map("absent"), _weight_map("../b.safetensors")):
        assert model.learn(index, answer, known) is known


def test_a_long_header_is_fetched_whole() -> None:
    model = Model({"a.safetensors": SHARD, "b.safetensors": SHARD})
    assert [question.extent for question in model.survey.questions] == [Extent(ContentOffset(0), ContentOffset(8))] * 2
    for length in (0, 100, 2 * MIB - 8, 100_000_001, 2**64 - 1, SHARD - 7):
        assert model.learn("b.safetensors", length.to_bytes(8, "little")) is NOTHING
    known = model.learn("b.safetensors", (20 * MIB).to_bytes(8, "little"))
    assert model.order(known) == [
        "a.safetensors 0:1",
        "b.safetensors 0:3",
        "a.safetensors 1:7",
        "b.safetensors 3:7",
    ]


def test_parts_of_a_gguf() -> None:
    """The first has the vocabulary, the others only their tensors' places."""
    model = Model({f"m-0000{n}-of-00002.gguf": SHARD for n in (1, 2)})
    assert model.order() == [
        "m-00001-of-00002.gguf 0:2",
        "m-00002-of-00002.gguf 0:1",
        "m-00001-of-00002.gguf 2:7",
        "m-00002-of-00002.gguf 1:7",
    ]


def test_a_real_model() -> None:
    """Its one file of weights comes behind all that is read before it, and from its start."""
    try:
        root = real_model()
    except Unavailable as reason:
        pytest.skip(str(reason))
    found = sorted(path for path in root.rglob("*") if path.is_file())
    model = Model({str(path.relative_to(root)): path.stat().st_size for path in found})
    order = model.order()
    assert order[-2:] == ["README.md 0:1", "model.safetensors 0:7"]
    assert sorted(order[:-2]) == sorted(
        f"{path} 0:1" for path in model.files if path not in {"README.md", "model.safetensors"}
    )
    with (root / "model.safetensors").open("rb") as file:
        assert model.learn("model.safetensors", file.read(8)) is NOTHING


def test_one_tar_of_all() -> None:
    """Small files take with them what shares their segments; every segment once."""
    shard = SHARD - 4 * KIB
    toc = _tar([("config.json", KIB), ("a.safetensors", shard), ("b.safetensors", shard), ("z/readme.md", KIB)])
    segments = cut(toc)
    heads = [number for number, extent in enumerate(segments) if extent.length == 2 * MIB]
    assert (heads, len(segments)) == ([1, 8], 15)
    assert Survey(merge([toc]), [Cut(1, segments)]).order() == [
        Stretch(1, 0, 1),
        Stretch(1, 14, 15),
        Stretch(1, 1, 2),
        Stretch(1, 8, 9),
        Stretch(1, 2, 8),
        Stretch(1, 9, 14),
    ]


def test_layers_that_are_one_content() -> None:
    """The same blob under two names."""
    tocs = [toc_of_raw(path, SHARD, 0o644, 0) for path in ("a.bin", "b.bin")]
    order = Survey(merge(tocs), [Cut(5, cut(toc)) for toc in tocs]).order()
    assert order == [Stretch(5, 0, 1), Stretch(5, 6, 7), Stretch(5, 1, 6)]


def test_many_small_files_in_few_segments() -> None:
    """What is kept of them is their segments alone."""
    toc = _tar([(f"lib/{n}.{'py' if n % 2 else 'md'}", 9 * KIB) for n in range(5_000)])
    survey = Survey(merge([toc]), [Cut(1, cut(toc))])
    assert survey.order() == [Stretch(1, 0, len(cut(toc)))]
    assert survey.questions == ()


_PATHS = st.sampled_from(
    [
        "config.json", "model.safetensors.index.json", "README.md", "run.py", "a-1.safetensors", "a-10.safetensors",
        "original/a.pth", "consolidated.safetensors", "b.gguf", "b-00002-of-00003.gguf", "c.bin", "d.onnx", "vocab.txt",
    ]
)  # fmt: skip
_SIZES = st.sampled_from([0, 1, 511, MIB, 4 * MIB - 1, 4 * MIB, 17 * MIB, 64 * MIB, 200 * MIB, 3 * GIB])
_LAYERS = st.lists(st.lists(st.tuples(_PATHS, _SIZES), max_size=8), min_size=1, max_size=5)


@settings(deadline=None)
@given(_LAYERS, st.data())
def test_every_segment_once(layers: Sequence[Sequence[tuple[str, int]]], data: st.DataObject) -> None:
    """Whatever is known, right or wrong; in the same order each time."""
    tocs = [_tar([(f"{n}/{m}/{path}", size) for m, (path, size) in enumerate(files)]) for n, files in enumerate(layers)]
    cuts = [Cut(n, cut(toc)) for n, toc in enumerate(tocs)]
    tree = merge(tocs)
    survey = Survey(tree, cuts)
    paths = [path for path, _ in tree.files()]
    known = Known(
        heads=data.draw(st.dictionaries(st.sampled_from(paths), st.integers(0, 2**64))) if paths else {},
        named={path.rpartition(b"/")[0] + b"/": frozenset(paths[:2]) for path in paths[::2]},
    )
    order = survey.order(known)
    found = [(stretch.content, n) for stretch in order for n in range(stretch.first, stretch.end)]
    assert sorted(found) == [(each.content, n) for each in cuts for n in range(len(each.extents))]
    assert all(stretch.first < stretch.end for stretch in order)
    assert Survey(tree, cuts).order(known) == order
    for question in survey.questions:
        answer = data.draw(st.binary(max_size=16))
        assert len(survey.order(survey.learn(known, question, answer))) > 0


def _tar(files: Sequence[tuple[str, int]]) -> Toc:
    """One header before each file, and two blocks at the end."""
    lengths = [BLOCK + padded(size) for _, size in files]
    ends = list(accumulate(lengths, initial=0))
    entries = [
        Entry(path, size=size, offset=ContentOffset(at + BLOCK)) for (path, size), at in zip(files, ends, strict=False)
    ]
    return Toc(tuple(entries), ends[-1] + 2 * BLOCK)
