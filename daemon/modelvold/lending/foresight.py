"""Prefetch in the order in which a volume will be read (`fetch.order`), better known as soon as its first files tell more of it.

A volume's tree takes seconds where it has very many files, and whoever begins a prefetch may be a Prepare: a thread makes the order. It
reads what has come from segment files, never through a mount, and believes it before it is verified: a lie costs time, no more.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from modelvold.errors import Failure, NotFound
from modelvold.fetch.fetcher import Fetcher
from modelvold.fetch.order import Cut, Known, Question, Survey
from modelvold.fetch.stretch import Stretch
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store
from modelvold.volume.tree import Folder, Tree

log = logging.getLogger(__name__)

#: Of a volume of which nothing is known: its contents come one behind another.
_NO_FILES = Tree(Folder(b"", 0o755, 0, 0, 0, ()), 1)


@dataclass(slots=True)
class _View:
    """What is made of one volume, while there is something to be learnt of it. `asked` are contents to begin with, `wanted` those that
    were begun, by number."""

    volume: str
    asked: set[int] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)
    contents: dict[int, Content] = field(default_factory=dict)
    survey: Survey | None = None
    known: Known = field(default_factory=Known)
    questions: list[Question] = field(default_factory=list)
    order: list[Stretch] = field(default_factory=list)


class Foresight:
    """A watcher of the store. `tree_of` gives the tree of a volume by its id; it may raise Failure, and KeyError where the volume was
    removed."""

    def __init__(self, store: Store, fetcher: Fetcher, tree_of: Callable[[str], Tree]) -> None:
        self._store = store
        self._fetcher = fetcher
        self._tree_of = tree_of
        #: Guards what follows; held while a prefetch begins, so that none does once its volume is forgotten.
        self._changed = threading.Condition()
        self._views: dict[str, _View] = {}
        self._due: OrderedDict[str, None] = OrderedDict()
        #: How long a segment's file must be for an answer to be in it, and who asks. Looked up at every append, without the lock.
        self._awaited: dict[Segment, tuple[int, tuple[str, ...]]] = {}
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="foresight")

    def __enter__(self) -> Self:
        self._store.watch(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ending = True
            self._views.clear()
            self._awaited = {}
            self._changed.notify()
        self._thread.join()

    def start(self, volume: str, contents: Sequence[Content]) -> None:
        """What is missing of these contents of the volume is fetched, behind what was to be fetched before. Returns at once."""
        if not contents:
            return
        with self._changed:
            if not self._ending:
                self._views.setdefault(volume, _View(volume)).asked |= {content.id for content in contents}
                self._due[volume] = None
                self._changed.notify()

    def forget(self, volume: str) -> None:
        """No prefetch of it begins any more; those that have begun are the fetcher's to forget."""
        with self._changed:
            self._forget(volume)

    def _drop(self, view: _View) -> None:
        """Unless the volume has been begun anew meanwhile."""
        with self._changed:
            if self._views.get(view.volume) is view:
                self._forget(view.volume)

    def _forget(self, volume: str) -> None:
        self._views.pop(volume, None)
        left = {s: (size, tuple(v for v in whose if v != volume)) for s, (size, whose) in self._awaited.items()}
        self._awaited = {segment: (size, whose) for segment, (size, whose) in left.items() if whose}

    # -- told by the store (store.ports.Watcher)

    def on_grown(self, segment: Segment) -> None:
        awaited = self._awaited.get(segment)
        if awaited is not None and segment.present >= awaited[0]:
            with self._changed:
                _, volumes = self._awaited.pop(segment, (0, ()))
                self._due.update(dict.fromkeys(volumes))
                self._changed.notify()

    def on_durable(self, segments: Sequence[Segment]) -> None: ...

    def on_leaving(self, segments: Sequence[Segment]) -> None: ...

    def on_missing(self, segments: Sequence[Segment]) -> None: ...

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None: ...

    # -- our thread, which alone has what is in a view, but for `asked`

    def _run(self) -> None:
        while (view := self._next()) is not None:
            try:
                self._look(view)
            except (KeyError, NotFound):
                log.info("order volume=%s ended reason=removed", view.volume)
                self._drop(view)
            except Exception:  # the next volume is none the worse
                log.exception("order volume=%s failed", view.volume)
                self._drop(view)

    def _next(self) -> _View | None:
        with self._changed:
            while not self._ending:
                while self._due:
                    volume, _ = self._due.popitem(last=False)
                    if (view := self._views.get(volume)) is not None:
                        return view
                self._changed.wait()
            return None

    def _look(self, view: _View) -> None:
        survey = view.survey or self._survey(view)
        before = view.known
        view.questions = [question for question in view.questions if not self._is_answered(view, survey, question)]
        order = survey.order(view.known) if view.known is not before or not view.order else view.order
        with self._changed:
            if self._views.get(view.volume) is view:
                self._begin(view, order)
                if not view.questions:
                    del self._views[view.volume]

    def _survey(self, view: _View) -> Survey:
        """Raises NotFound, KeyError where the volume, a content, was removed."""
        numbers = self._store.catalog.volume(view.volume).contents
        view.contents = {number: self._store.content(number) for number in numbers}
        try:
            tree = self._tree_of(view.volume)
        except Failure as failure:
            log.warning("order volume=%s unknown reason=%r", view.volume, str(failure))
            tree, numbers = _NO_FILES, tuple(view.contents)
        cuts = [Cut(number, [segment.extent for segment in view.contents[number].segments]) for number in numbers]
        survey = view.survey = Survey(tree, cuts)
        view.questions = list(survey.questions)
        return survey

    def _begin(self, view: _View, order: list[Stretch]) -> None:
        """What is asked for; and where the order is another than before, what is under way."""
        chosen, view.asked = view.asked, set()
        view.wanted |= chosen
        if order != view.order:
            chosen |= {number for number in view.wanted if self._fetcher.is_prefetching(view.contents[number])}
            view.order = order
        if chosen:
            self._fetcher.prefetch([stretch for stretch in order if stretch.content in chosen])

    def _is_answered(self, view: _View, survey: Survey, question: Question) -> bool:
        pieces: list[bytes] = []
        for segment, start, end in _pieces(view.contents[question.content], question):
            if segment.present < end:
                self._await(view, segment, end)
                return False
            pieces.append(_read(segment, start, end))
        view.known = survey.learn(view.known, question, b"".join(pieces))
        return True

    def _await(self, view: _View, segment: Segment, end: int) -> None:
        with self._changed:
            if self._views.get(view.volume) is view:
                least, volumes = self._awaited.get(segment, (end, ()))
                self._awaited[segment] = (min(least, end), tuple(dict.fromkeys([*volumes, view.volume])))
        self.on_grown(segment)  # it may have grown before it was awaited


def _pieces(content: Content, question: Question) -> Iterator[tuple[Segment, int, int]]:
    """Where the answer lies: [start, end) of a segment's file."""
    start, end = question.extent.start, question.extent.end
    first = bisect_right(content.segments, start, key=lambda segment: segment.extent.start) - 1
    for segment in content.segments[first:]:
        if segment.extent.start >= end:
            break
        yield (
            segment,
            max(start, segment.extent.start) - segment.extent.start,
            min(end - segment.extent.start, segment.length),
        )


def _read(segment: Segment, start: int, end: int) -> bytes:
    """Less than that where its bytes are going, or have moved."""
    try:
        file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(file, end - start, start)
    finally:
        os.close(file)
