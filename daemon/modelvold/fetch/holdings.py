"""What the plan knows of the store's contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelvold.fetch.stretch import Key
from modelvold.oci.reference import Repository
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store


class Holdings:
    """See fetch.stretch.Segments. Contents are made known by `learn`, which asks the rooms above and is called without a lock."""

    def __init__(self, store: Store, sources_of: Callable[[Content], Sequence[Repository]]) -> None:
        self._store = store
        self._sources_of = sources_of
        self._hosts: dict[int, str] = {}

    def learn(self, content: Content) -> None:
        sources = self._sources_of(content)
        self._hosts[content.id] = sources[0].host if sources else ""

    def forget(self, content: Content) -> None:
        self._hosts.pop(content.id, None)

    def knows(self, content: Content) -> bool:
        return content.id in self._hosts

    def host(self, content: int, /) -> str:
        return self._hosts.get(content, "")

    def segment(self, key: Key) -> Segment:
        """Raises KeyError where the content was removed meanwhile."""
        return self._store.content(key[0]).segments[key[1]]

    def find(self, key: Key) -> Segment | None:
        """None where the content was removed meanwhile."""
        try:
            return self.segment(key)
        except KeyError:
            return None

    def is_missing(self, key: Key, /) -> bool:
        segment = self.find(key)
        return segment is not None and not segment.is_complete

    def length(self, key: Key, /) -> int:
        segment = self.find(key)
        return segment.length if segment is not None else 0

    def left(self, key: Key) -> int:
        """Bytes that it lacks."""
        segment = self.find(key)
        return segment.length - segment.filled if segment is not None else 0

    def count(self, content: int, /) -> int:
        try:
            return len(self._store.content(content).segments)
        except KeyError:
            return 0
