"""Models to test with: trees of files whose bytes follow from a seed, so that an example is small and its content is
not.

`trees()` is the hypothesis strategy; `random_tree(seed)` gives one without hypothesis, for tests that start servers. A
`Specimen` knows its bytes by path, its tocs and contents as layers, and how to lie on disk.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from modelvold.layer.extent import BLOCK, CHUNK, ContentOffset, padded
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Toc

SEGMENT = 16 << 20

#: One below, at and one above each boundary, and what has none.
SMALL = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK)
CHUNKS = (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - BLOCK, 2 * CHUNK + 1)
SEGMENTS = (SEGMENT - 1, SEGMENT, SEGMENT + 1, SEGMENT + CHUNK)

#: Names that sort around `.` and `..`, that a shell or a parser of lines would trip over, and as long as they get.
NAMES = (
    "a b", " ", "new\nline", "ta\tb", "back\\slash", "quo'te\"", "naïve", "模型", "🤗", "-", "--", "!",
    ".a", "..b", "...", ".-", "~",
    "x" * 255, "é" * 127, "y" * 254, "%40", "\\040", "*",
)  # fmt: skip


@lru_cache(maxsize=16)
def content(seed: int, size: int) -> bytes:
    """`size` bytes that differ from their neighbours', and from those of any other seed."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Sample:
    """One file. `mtime` in nanoseconds."""

    path: str
    size: int
    seed: int
    mode: int = 0o644
    mtime: int = 0

    @property
    def content(self) -> bytes:
        return content(self.seed, self.size)


@dataclass(frozen=True, slots=True)
class Specimen:
    """Files by layer. A layer of one file is raw; several lie as a tar would lay them, each behind a block of
    something else.
    """

    layers: tuple[tuple[Sample, ...], ...]

    def samples(self) -> list[Sample]:
        return [sample for layer in self.layers for sample in layer]

    def raw(self) -> Specimen:
        """The same files, each a layer of its own."""
        return Specimen(tuple((sample,) for sample in self.samples()))

    def tocs(self) -> list[Toc]:
        return [_toc(layer) for layer in self.layers]

    def content(self, layer: int) -> bytes:
        """The bytes of one layer."""
        whole = bytearray(self.tocs()[layer].length)
        for entry, sample in zip(_toc(self.layers[layer]).entries, self.layers[layer], strict=True):
            whole[entry.offset : entry.offset + entry.size] = sample.content
        return bytes(whole)

    def write_to(self, folder: Path) -> None:
        """The files on disk, with modes and times."""
        for sample in self.samples():
            path = folder / sample.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.content)
            path.chmod(sample.mode)
            os.utime(path, ns=(sample.mtime, sample.mtime))


def names() -> st.SearchStrategy[str]:
    free = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40)
    usable = free.filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255)
    return st.one_of(
        st.sampled_from(NAMES),
        usable,
        st.text("ab.-", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."}),
    )


@st.composite
def trees(draw: st.DrawFn, *, large: bool = True) -> Specimen:
    """A model of up to about twenty files, nested, in one layer or several; with `large` also some around a segment's
    length.
    """
    sizes = st.one_of(st.sampled_from(SMALL), st.integers(0, 5000), st.sampled_from(CHUNKS))
    nested = st.recursive(sizes, lambda below: st.dictionaries(names(), below, min_size=1, max_size=6), max_leaves=20)
    top: dict[str, Any] = draw(st.dictionaries(names(), nested, min_size=1, max_size=6))
    found = [(path, draw(st.sampled_from(SEGMENTS)) if large and n == 0 and draw(st.booleans()) else size)
             for n, (path, size) in enumerate(_flat(top))]  # fmt: skip
    modes, times = st.integers(0, 0o777), st.integers(0, 4 * 10**18)
    first = draw(st.integers(0, 1 << 30))
    samples = [Sample(path, size, first + n, draw(modes), draw(times)) for n, (path, size) in enumerate(found)]
    bounds = draw(st.sets(st.integers(1, max(len(samples) - 1, 1)), max_size=4))
    return Specimen(_grouped(draw(st.permutations(samples)), bounds))


def random_tree(seed: int, *, files: int = 30, sizes: Iterable[int] = (*SMALL, *CHUNKS, *SEGMENTS)) -> Specimen:
    """A model of `files` raw layers, with each size where there are files enough; the same for the same seed."""
    choose = random.Random(seed)
    wanted = list(sizes)
    folders = ["", "weights/", "weights/deep/er/", f"{choose.choice(NAMES)}/", f"a b/{choose.choice(NAMES)}/"]
    samples = []
    for n in range(files):
        size = wanted[n] if n < len(wanted) else choose.choice(wanted)
        name = choose.choice(NAMES) if choose.random() < 0.5 else f"model-{n:05}.safetensors"
        name = name if len(name.encode()) > 200 else f"{name}{n}"
        samples.append(
            Sample(choose.choice(folders) + name, size, choose.getrandbits(32), choose.choice((0o644, 0o600, 0o755)))
        )
    # Two long names may have met in one folder.
    unique = {sample.path: sample for sample in samples}
    taken = [sample if unique[sample.path] is sample else _renamed(sample, n) for n, sample in enumerate(samples)]
    return Specimen(tuple((sample,) for sample in taken))


def _renamed(sample: Sample, n: int) -> Sample:
    return Sample(f"renamed-{n}", sample.size, sample.seed, sample.mode, sample.mtime)


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for name, below in tree.items():
        found += _flat(below, f"{above}{name}/") if isinstance(below, dict) else [(above + name, below)]
    return found


def _grouped(samples: list[Sample], bounds: set[int]) -> tuple[tuple[Sample, ...], ...]:
    cuts = [0, *sorted(bound for bound in bounds if bound < len(samples)), len(samples)]
    return tuple(tuple(samples[a:b]) for a, b in pairwise(cuts))


def _toc(layer: tuple[Sample, ...]) -> Toc:
    if len(layer) == 1:
        return toc_of_raw(layer[0].path, layer[0].size, layer[0].mode, layer[0].mtime)
    entries, at = [], 0
    for sample in layer:
        at += BLOCK
        entries.append(
            Entry(sample.path, mode=sample.mode, mtime=sample.mtime, size=sample.size, offset=ContentOffset(at))
        )
        at = padded(at + sample.size)
    return Toc(tuple(entries), at + 2 * BLOCK)
