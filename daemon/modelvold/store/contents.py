"""The table of the contents there are: by number, and by what they are and whose."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.content import Content, folder_of


class Contents:
    """Safe to use from any thread. The one place that moves a content's folder, so that its name and its key change together."""

    def __init__(self, contents: Iterable[Content]) -> None:
        #: Held while contents' folders are made, moved and taken away: one that is empty may go with the last of them.
        self.placing = threading.Lock()
        self._lock = threading.Lock()  # guards both tables, and that a content's folder is where its `source` says
        self._by_number = {content.id: content for content in contents}
        self._by_key = {(c.digest, c.reading, c.source): c for c in self._by_number.values()}

    def all(self) -> list[Content]:
        with self._lock:
            return list(self._by_number.values())

    def get(self, number: int) -> Content:
        """Raises KeyError."""
        with self._lock:
            return self._by_number[number]

    def has(self, number: int) -> bool:
        with self._lock:
            return number in self._by_number

    def find(self, digest: Digest, reading: Reading, source: str) -> Content | None:
        """The content of `source`, or the shared one where `source` is empty."""
        with self._lock:
            return self._by_key.get((digest, reading, source))

    def add(self, content: Content) -> None:
        """It can be asked about by its number; nobody finds it yet."""
        with self._lock:
            self._by_number[content.id] = content

    def publish(self, content: Content, source: str) -> None:
        """It is found, as that of `source`, unless it was verified and shared by now."""
        with self._lock:
            if content.source == source:
                self._by_key[content.digest, content.reading, source] = content

    def drop(self, content: Content) -> None:
        with self._lock:
            self._by_number.pop(content.id, None)
            if self._by_key.get((content.digest, content.reading, content.source)) is content:
                del self._by_key[content.digest, content.reading, content.source]

    def share(self, content: Content) -> bool:
        """Moves its folder to the shared place; False where the same content lies there already, or this one is gone."""
        with self._lock:
            is_ours = self._by_number.get(content.id) is content
            if not is_ours or (content.digest, content.reading, "") in self._by_key:
                return False
            content.folder().rename(folder_of(content.root, content.digest, content.reading, ""))
            self._by_key.pop((content.digest, content.reading, content.source), None)
            content.source = ""
            self._by_key[content.digest, content.reading, ""] = content
            return True
