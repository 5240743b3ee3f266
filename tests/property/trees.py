"""Models to test with.

`trees()` is the hypothesis strategy; `random_tree(seed)` gives one without hypothesis, for tests that start servers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from modelvold.layer.extent import BLOCK, CHUNK
from modelvold.layer.toc import Toc

from tests.property.layers import FORMS, OWNERS, Folder, HardLink, Layer, Member, Raw, Sample, Symlink, Tar, packed
from tests.property.seen import Seen, above, shown

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
#: Where symbolic links lead: nowhere, out, round in circles; bytes that are no text; around what a header holds.
TARGETS = (
    "absent", "/etc/passwd", "../" * 30 + "out", ".", "..", "模型/\udcff", "new\nline",
    "t" * 99, "t" * 100, "t" * 101, "t" * 4095,
)  # fmt: skip
#: What a volume's layers are, and which of so many files, by number, are layers of their own then.
_ALONE: dict[str, Callable[[int], st.SearchStrategy[set[int]]]] = {
    "tar": lambda _: st.just(set()),
    "mixed": lambda files: st.sets(st.integers(0, files - 1)),
    "raw": lambda files: st.just(set(range(files))),
}
KINDS = tuple(_ALONE)


@dataclass(frozen=True, slots=True)
class Specimen:
    """A model: its layers, no path in two of them but folders'."""

    layers: tuple[Layer, ...]

    @property
    def members(self) -> list[Member]:
        """All of all layers, as they are shown."""
        return [member for layer in self.layers for member in layer.members]

    def samples(self) -> list[Sample]:
        """Every file once."""
        return [member for member in self.members if isinstance(member, Sample)]

    def contents(self) -> dict[str, bytes]:
        """The bytes of each name of a file."""
        found = {sample.path: sample.content for sample in self.samples()}
        return found | {m.path: found[m.target] for m in self.members if isinstance(m, HardLink)}

    def folders(self) -> dict[str, Folder]:
        """Those that a tar names, as the last one says."""
        return {member.path: member for member in self.members if isinstance(member, Folder)}

    def raw(self) -> Specimen:
        """The same files, each a layer of its own."""
        return raw(*self.samples())

    def tocs(self) -> list[Toc]:
        return [layer.toc for layer in self.layers]

    def shown(self) -> dict[str, Seen]:
        """What must be seen at each path, the root's among them."""
        return shown(self.members)


def raw(*samples: Sample) -> Specimen:
    return Specimen(tuple(Raw(sample) for sample in samples))


def names() -> st.SearchStrategy[str]:
    free = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40)
    usable = free.filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255)
    return st.one_of(
        st.sampled_from(NAMES),
        usable,
        st.text("ab.-", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."}),
    )


@st.composite
def trees(draw: st.DrawFn, *, large: bool = True, kinds: Sequence[str] = KINDS) -> Specimen:
    """A model of up to about twenty files, nested, in raw layers, in tars, or in both; in tars also links, and folders
    that they name. At least one is a file; with `large` that may be around a segment's length.
    """
    sizes = st.one_of(st.sampled_from(SMALL), st.integers(0, 5000), st.sampled_from(CHUNKS))
    nested = st.recursive(sizes, lambda below: st.dictionaries(names(), below, min_size=1, max_size=6), max_leaves=20)
    top: dict[str, Any] = draw(st.dictionaries(names(), nested, min_size=1, max_size=6))
    first = draw(st.integers(0, 1 << 30))
    samples = [Sample(path, size, first + n, **draw(_fields())) for n, (path, size) in enumerate(_flat(top))]
    if large and draw(st.booleans()):
        samples[0] = replace(samples[0], size=draw(st.sampled_from(SEGMENTS)))
    certain = samples[0].path
    samples = draw(st.permutations(samples))
    alone = draw(_ALONE[draw(st.sampled_from(kinds))](len(samples)))
    layers = [Raw(sample) for n, sample in enumerate(samples) if n in alone]
    in_tars = [sample for n, sample in enumerate(samples) if n not in alone]
    bounds = draw(st.sets(st.integers(1, max(len(in_tars) - 1, 1)), max_size=4))
    folders = sorted({folder for sample in samples for folder in above(sample.path)})
    tars = [draw(_tars(group, folders, certain)) for group in _grouped(in_tars, bounds)]
    return Specimen(tuple(draw(st.permutations([*layers, *tars]))))


def _fields() -> st.SearchStrategy[dict[str, int]]:
    """What every header has but hard links'."""
    return st.fixed_dictionaries(
        {
            "mode": st.integers(0, 0o7777),
            "mtime": st.integers(0, 4 * 10**18),
            "uid": st.sampled_from(OWNERS),
            "gid": st.sampled_from(OWNERS),
        }
    )


@st.composite
def _tars(draw: st.DrawFn, samples: list[Sample], folders: list[str], certain: str) -> Tar:
    """A tar with a member for each of `samples`, not all of them files, but that at the path `certain` is; and with some
    of the `folders` named."""
    drafts: list[Member] = [s if s.path == certain else draw(_drafts(s)) for s in samples]
    named = draw(st.sets(st.sampled_from(folders), max_size=4))
    drafts += [Folder(path, **draw(_fields())) for path in sorted(named)]
    members: list[Member] = []
    files: list[Sample] = []
    for draft in draw(st.permutations(drafts)):
        if isinstance(draft, HardLink):
            target = draw(st.sampled_from(files)).path if files else ""
            members.append(HardLink(draft.path, target) if target else Symlink(draft.path, "a link to no file"))
            continue
        if isinstance(draft, Sample):
            files.append(draft)
        members.append(draft)
    return packed(members, draw(st.sampled_from(FORMS)), is_dotted=draw(st.booleans()))


@st.composite
def _drafts(draw: st.DrawFn, sample: Sample) -> Member:
    """What is at the sample's path: itself, or a link, or an empty folder. Names that are no text are none of files,
    so that these could be raw layers too."""
    kind = draw(st.sampled_from((Sample, Sample, Sample, Symlink, HardLink, HardLink, Folder)))
    if kind is Sample:
        return sample
    path, name = sample.path, sample.path.rpartition("/")[2]
    if len(name.encode()) < 255 and draw(st.booleans()):
        path += "\udcff"
    if kind is HardLink:
        return HardLink(path, "")
    if kind is Folder:
        return Folder(path, sample.mode, sample.mtime, sample.uid, sample.gid)
    target = draw(st.sampled_from((*TARGETS, name, path)))
    return Symlink(path, target, sample.mtime, sample.uid, sample.gid)


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
    return raw(*(s if unique[s.path] is s else replace(s, path=f"renamed-{n}") for n, s in enumerate(samples)))


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for name, below in tree.items():
        found += _flat(below, f"{above}{name}/") if isinstance(below, dict) else [(above + name, below)]
    return found


def _grouped(samples: list[Sample], bounds: set[int]) -> list[list[Sample]]:
    cuts = [0, *sorted(bound for bound in bounds if bound < len(samples)), len(samples)]
    return [samples[a:b] for a, b in pairwise(cuts) if a < b]
