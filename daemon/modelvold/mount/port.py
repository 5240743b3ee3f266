"""What this room asks of the one that brings bytes."""

from __future__ import annotations

from typing import Protocol

from modelvold.store.segment import Segment


class Bytes(Protocol):
    def demand(self, segment: Segment) -> None:
        """Somebody waits. Returns at once; the store's watchers are told what becomes of it."""

    def release(self, segment: Segment) -> None:
        """Nobody waits any more."""
