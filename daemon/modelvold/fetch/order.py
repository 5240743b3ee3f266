"""In which order a volume's bytes are fetched while nobody waits for them. Pure.

Engines open a model alike (`engine`), and this is the order in which they come to its bytes:

1. small files whole: configuration, templates and tokenizers, then code, documents last;
2. the head of every file of weights, which are all opened before the first tensor is read;
3. weights, in the natural order of their names, each from its start; then other large files;
4. weights that stand elsewhere in the model in another shape.

Every segment comes once, at the first place that it has a claim to; the last ones are those of no file. What was said in files that
have come (`Survey.questions`) is known the next time, and may change the order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from modelvold.engine import gguf, safetensors, weight_map
from modelvold.engine.files import Form, Turn, form_of, is_second_copy, is_weight_map, turn_of
from modelvold.fetch.stretch import Stretch
from modelvold.layer.extent import ContentOffset, Extent
from modelvold.pack.classify import natural_order
from modelvold.volume.tree import File, Tree

#: Bytes below which a file is small. Engines read those one after another, each a round trip if it is not here.
_SMALL = 4 << 20
#: Likewise of what they read before they look at weights: tokenizers of 256 Ki words have 30 MB.
_SMALL_FOR_FIRST = 64 << 20
#: An archive's directory is at its end; that of 4000 tensors has 400 KB, and is in the segment that these bytes are in.
_TAIL = 64 << 10
#: What is asked of files: bounds what is remembered of a volume of very many.
_MOST_QUESTIONS = 1024
_NONE = len(Turn)


@dataclass(frozen=True, slots=True)
class Cut:
    """A layer's content, by its number, and the extents of its segments."""

    content: int
    extents: Sequence[Extent]


@dataclass(frozen=True, slots=True)
class Question:
    """Bytes of a file, `extent` of a content, that would tell more of the order. `size` is the file's."""

    path: bytes
    size: int
    content: int
    extent: Extent


@dataclass(frozen=True, slots=True)
class Known:
    """`heads`: bytes from the start of a file of weights, where its head is longer than most. `named`: by folder, the files that
    have the weights of the model in it, where it is said; folders end with a slash, that of the root is empty."""

    heads: Mapping[bytes, int] = field(default_factory=dict)
    named: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Large:
    path: bytes
    form: Form
    content: int
    offset: ContentOffset
    size: int

    def extent(self, start: int, end: int) -> Extent:
        """[start, end) of the file, as far as it reaches, in its content."""
        return Extent(ContentOffset(self.offset + max(0, start)), ContentOffset(self.offset + min(end, self.size)))


class Survey:
    """A volume's files as far as the order depends on them; layer `i` of the tree is cut as `cuts[i]`. Linear in the number of files;
    of small ones only their segments are kept."""

    def __init__(self, tree: Tree, cuts: Sequence[Cut]) -> None:
        self._counts = {cut.content: len(cut.extents) for cut in cuts}
        self._starts = {cut.content: [extent.start for extent in cut.extents] for cut in cuts}
        #: By content, of each segment, the first turn of a small file in it; `_NONE` where there is none.
        self._turns = {content: bytearray([_NONE]) * count for content, count in self._counts.items()}
        self._large: list[_Large] = []
        maps: list[Question] = []
        for path, file in tree.files():
            content = cuts[file.layer].content
            turn = turn_of(file.name)
            if file.size >= (_SMALL_FOR_FIRST if turn is Turn.FIRST else _SMALL):
                self._large.append(_Large(path, form_of(file.name), content, file.offset, file.size))
            elif file.size:
                self._note_small(content, file, turn)
                if turn is Turn.FIRST and is_weight_map(file.name) and file.size <= weight_map.LONGEST:
                    extent = Extent(file.offset, ContentOffset(file.offset + file.size))
                    maps.append(Question(path, file.size, content, extent))
        self._large.sort(key=lambda file: natural_order(file.path.decode("utf-8", "surrogateescape")))
        #: What to read of the volume, once it is here, and give to `learn`.
        self.questions = tuple([*maps, *self._heads_to_ask()][:_MOST_QUESTIONS])

    def order(self, known: Known = Known()) -> list[Stretch]:
        """All segments, each once, the first to be fetched first."""
        laid = _Laid(self._counts)
        for turn in Turn:
            for content, turns in self._turns.items():
                for first, end in _runs(turns, turn):
                    laid.add(content, first, end)
        for file in self._large:
            for extent in _heads_of(file, known):
                laid.add(file.content, *self._segments(file.content, extent.start, extent.end))
        for file in self._in_groups(known):
            laid.add(file.content, *self._segments(file.content, file.offset, file.offset + file.size))
        for content, count in self._counts.items():
            laid.add(content, 0, count)
        return laid.stretches

    def learn(self, known: Known, question: Question, answer: bytes) -> Known:
        """What is known with the bytes that were asked for; the same where they change nothing, or are not understood."""
        if is_weight_map(question.path):
            folder = _folder(question.path)
            named = {folder + name for name in weight_map.files_of(answer)} & {file.path for file in self._large}
            before = known.named.get(folder, frozenset())
            return known if named <= before else replace(known, named={**known.named, folder: before | named})
        end = safetensors.header_end(answer, question.size)
        if end is None or end <= safetensors.HEAD:
            return known
        return replace(known, heads={**known.heads, question.path: end})

    def _note_small(self, content: int, file: File, turn: Turn) -> None:
        turns = self._turns[content]
        for number in range(*self._segments(content, file.offset, file.offset + file.size)):
            turns[number] = min(turns[number], turn)

    def _heads_to_ask(self) -> Iterator[Question]:
        for file in self._large:
            if file.form is Form.SAFETENSORS:
                yield Question(file.path, file.size, file.content, file.extent(0, safetensors.LENGTH))

    def _in_groups(self, known: Known) -> list[_Large]:
        """Weights, other large files, weights once more; each in natural order. Engines that find safetensors beside an archive read
        those, and of them what the weight map names."""
        with_safetensors = {_folder(file.path) for file in self._large if file.form is Form.SAFETENSORS}

        def group(file: _Large) -> int:
            folder = _folder(file.path)
            is_other_form = file.form is Form.ARCHIVE and folder in with_safetensors
            is_unnamed = folder in known.named and file.path not in known.named[folder]
            if is_second_copy(file.path) or (file.form is not Form.OTHER and (is_other_form or is_unnamed)):
                return 2
            return 1 if file.form is Form.OTHER else 0

        return sorted(self._large, key=group)

    def _segments(self, content: int, start: int, end: int) -> tuple[int, int]:
        """The numbers, [first, end), of those that hold some of [start, end) of the content."""
        starts = self._starts[content]
        return bisect_right(starts, start) - 1, bisect_left(starts, end)


class _Laid:
    """Stretches one behind another, each segment once, neighbours as one. `counts`: how many segments a content has."""

    def __init__(self, counts: Mapping[int, int]) -> None:
        self._has = {content: bytearray(count) for content, count in counts.items()}
        self.stretches: list[Stretch] = []

    def add(self, content: int, first: int, end: int) -> None:
        has = self._has[content]
        for start, stop in _runs(has, 0, first, end):
            has[start:stop] = b"\1" * (stop - start)
            last = self.stretches[-1] if self.stretches else None
            if last is not None and (last.content, last.end) == (content, start):
                self.stretches[-1] = Stretch(content, last.first, stop)
            else:
                self.stretches.append(Stretch(content, start, stop))


def _runs(values: bytearray, wanted: int, first: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """The ranges of `values` in [first, end) that are all `wanted`."""
    stop = len(values) if end is None else end
    at = first
    while (start := values.find(wanted, at, stop)) >= 0:
        at = start
        while at < stop and values[at] == wanted:
            at += 1
        yield start, at


def _heads_of(file: _Large, known: Known) -> Iterator[Extent]:
    match file.form:
        case Form.SAFETENSORS:
            yield file.extent(0, known.heads.get(file.path, safetensors.HEAD))
        case Form.GGUF:
            yield file.extent(0, gguf.head_of(file.path))
        case Form.ARCHIVE:  # the pickle that names the tensors is its first member
            yield file.extent(0, _TAIL)
            yield file.extent(file.size - _TAIL, file.size)
        case Form.OTHER:  # read from their start: ONNX, HDF5, msgpack
            pass


def _folder(path: bytes) -> bytes:
    """With a slash at its end; empty for the root."""
    return path[: path.rfind(b"/") + 1]
