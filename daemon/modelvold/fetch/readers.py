"""Who reads upward, and how far ahead of them to fetch. Pure.

A file of weights is read by several ascending readers at once: one for each kind of number in it (safetensors names its tensors in
another order than they lie in), one for each rank, one for each thread. What is known of them is what they had to wait for: the kernel
reads complete segments without a word. So a reader is a place where somebody waited, and a window of what comes behind it; whoever
waits in or right behind a window is the reader come again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelvold.fetch.stretch import Key, Segments, Stretch

#: What a reader finds ahead of it, once the link has kept up: seconds of reading.
WINDOW = 256 << 20
#: Readers of one content that are told apart: eight threads, or a few kinds of numbers on some ranks.
MOST_READERS = 16


@dataclass(slots=True)
class _Reader:
    """It waited for segment `at - 1` and is expected in [at, end]; what has been asked for of that ends at `cursor`."""

    at: int
    end: int
    cursor: int

    def has_come(self, number: int) -> bool:
        """Whether one who waits for this segment may be this reader. (A read reaches a little ahead, so it may come one back.)"""
        return self.at - 1 <= number <= self.end


class Readers:
    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._readers: OrderedDict[int, list[_Reader]] = OrderedDict()  # by content; who waited last is last

    def note(self, key: Key, window: int = WINDOW) -> bool:
        """Somebody waits for this segment; `window` bytes ahead of it are wanted. Whether that was to be expected: it has been asked for
        already, or is the next."""
        content, number = key
        known = self._readers.setdefault(content, [])
        self._readers.move_to_end(content)
        come = next((reader for reader in reversed(known) if reader.has_come(number)), None)
        if come is not None:
            known.remove(come)
        ahead = max(2, window // max(1, self._segments.length(key)))
        end = min(number + 1 + ahead, self._segments.count(content))
        known.append(_Reader(number + 1, end, number + 1))
        del known[:-MOST_READERS]
        return come is not None and number <= come.cursor

    def next(self, is_free: Callable[[Key], bool], may: Callable[[int], bool]) -> Stretch | None:
        """What lies ahead of whoever waited last, from its first free segment on, of contents of which one `may` ask."""
        for content, reader in self._latest_first():
            while reader.cursor < reader.end and may(content):
                reader.cursor += 1
                if is_free((content, reader.cursor - 1)):
                    return Stretch(content, reader.cursor - 1, reader.end)
        return None

    def _latest_first(self) -> Iterator[tuple[int, _Reader]]:
        for content in reversed(self._readers):
            for reader in reversed(self._readers[content]):
                yield content, reader

    def forget(self, content: int) -> None:
        self._readers.pop(content, None)
