"""What is known of a snapshot, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The values are the words that filters and the database use."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True)
class Info:
    """containerd's `Info`. `name` is a key for active snapshots and views, a name for committed ones: one key space.
    `created` and `updated` are nanoseconds since 1970."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created: int
    updated: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes of one snapshot, its parents left out."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One link of a chain: its folder's number, and the volume it stands for, if any."""

    number: int
    volume: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A snapshot as stored. `parents` are its chain, the nearest first, the snapshot itself left out."""

    info: Info
    layer: Layer
    usage: Usage
    parents: tuple[Layer, ...] = ()

    @property
    def volume(self) -> str | None:
        """The nearest volume of the snapshot and its chain."""
        return next((layer.volume for layer in (self.layer, *self.parents) if layer.volume is not None), None)
