"""Whom the store tells, and whom it asks, by the thread that did the thing. No lock is held but in two places: what is durable is told
while segments are settled (so nobody may record, withdraw or judge in answer), and leases are asked for while room is shared out (so nobody
may take room)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from modelvold.errors import Failure
from modelvold.store.content import Content
from modelvold.store.room import Lease
from modelvold.store.segment import Segment


class Watcher(Protocol):
    """For one segment in this order: grown…, durable, and perhaps leaving and missing."""

    def on_grown(self, segment: Segment) -> None:
        """More of it may be read: see `segment.shown`."""

    def on_durable(self, segments: Sequence[Segment]) -> None:
        """These are open (`segment.is_open`): nobody needs to be asked about them any more."""

    def on_leaving(self, segments: Sequence[Segment]) -> None:
        """These are about to be truncated: from now on every read of them must be asked about, and none is allowed."""

    def on_missing(self, segments: Sequence[Segment]) -> None:
        """These were truncated: what is read of them must be fetched again, for those too who wait since they were leaving."""

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        """These cannot be had, for now."""


class Above(Protocol):
    """The rooms above, of which the store knows nothing."""

    def leases(self) -> Mapping[int, Lease]:
        """By content; those not named have none."""
        ...

    def start_over(self, content: Content) -> bool:
        """All of it is fetched again, from none of its `suspects`. False where there is nobody else to ask."""
        ...

    def on_wrong(self, segments: Sequence[Segment]) -> None:
        """These held wrong bytes and are truncated; whoever read them may have them still. Nothing comes in their place before
        this returns."""


class NothingAbove:
    """A store by itself."""

    def leases(self) -> Mapping[int, Lease]:
        return {}

    def start_over(self, _content: Content) -> bool:
        return False

    def on_wrong(self, _segments: Sequence[Segment]) -> None:
        pass


class Watchers:
    """All of them as one."""

    def __init__(self) -> None:
        self._all: tuple[Watcher, ...] = ()

    def add(self, watcher: Watcher) -> None:
        self._all = (*self._all, watcher)

    def on_grown(self, segment: Segment) -> None:
        for watcher in self._all:
            watcher.on_grown(segment)

    def on_durable(self, segments: Sequence[Segment]) -> None:
        for watcher in self._all:
            watcher.on_durable(segments)

    def on_leaving(self, segments: Sequence[Segment]) -> None:
        for watcher in self._all:
            watcher.on_leaving(segments)

    def on_missing(self, segments: Sequence[Segment]) -> None:
        for watcher in self._all:
            watcher.on_missing(segments)

    def on_failed(self, segments: Sequence[Segment], failure: Failure) -> None:
        for watcher in self._all:
            watcher.on_failed(segments, failure)
