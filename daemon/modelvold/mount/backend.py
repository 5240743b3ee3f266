"""The seam behind which a volume is shown: `lazy` today; others take the same four questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelvold.store.content import Content
from modelvold.store.segment import Segment


@dataclass(frozen=True, slots=True)
class Volume:
    """One model as one read-only tree. `image` is its EROFS image, `uuid` that image's; `contents` are its layers, in order."""

    id: str
    image: Path
    uuid: bytes
    contents: tuple[Content, ...]

    @property
    def segments(self) -> list[Segment]:
        """In the order of the image's devices."""
        return [segment for content in self.contents for segment in content.segments]

    @property
    def size(self) -> int:
        return sum(content.length for content in self.contents)


class Backend(Protocol):
    name: str

    def mount(self, volume: Volume, target: Path) -> str:
        """Shows `volume` at `target`, an empty folder. Returns what `adopt` will need to know after a restart. Raises OSError."""

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        """Takes it away; `others` are still mounted. Raises OSError(EBUSY) while it is in use."""

    def adopt(self, mounted: Sequence[tuple[Volume, str]]) -> None:
        """Serves again what a former daemon mounted: each volume with what `mount` returned for it then."""
