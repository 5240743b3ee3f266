"""What the plan knows of what is to be fetched. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

#: (content, segment number)
Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Segments [first, end) of the content with this number."""

    content: int
    first: int
    end: int


class Segments(Protocol):
    """What there is to fetch. A content may go at any moment: then nothing of it is missing any more."""

    def is_missing(self, key: Key, /) -> bool:
        """Whether it still lacks bytes."""
        ...

    def length(self, key: Key, /) -> int:
        """Bytes it has in all."""
        ...

    def count(self, content: int, /) -> int:
        """How many segments the content has."""
        ...

    def host(self, content: int, /) -> str:
        """Whom its requests go to; empty where nobody has it."""
        ...
