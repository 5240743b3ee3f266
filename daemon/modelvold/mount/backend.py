"""The seam behind which a volume is shown: `lazy`, `complete` or `directory`, each of which answers the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, slots=True)
class Known:
    """A volume that a former daemon may have left shown at `target`; `note` is what `mount` returned for it then."""

    volume: Volume
    target: Path
    note: str


class Backend(Protocol):
    """`is_lazy`: whether a volume is shown before its bytes are here. Where not, all of them are verified before `make_ready`
    is called."""

    name: str
    is_lazy: bool

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        """Once, before anything is mounted. The volumes that are still shown, and from now on served again."""

    def is_ready(self, volume: Volume) -> bool:
        """Whether `mount` may be called. Quick."""

    def make_ready(self, volume: Volume, cancelled: Callable[[], bool]) -> None:
        """What takes its time and makes it ready; no lock is held. May be called again. Raises Failure, NotYet once
        `cancelled()`."""

    def mount(self, volume: Volume, target: Path) -> str:
        """Shows `volume` at `target`, an empty folder. Returns what `adopt` will need to know after a restart. Raises OSError."""

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        """Takes it away; `target` is an empty folder again. `others` are still mounted. Raises OSError(EBUSY) while it is in use."""

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        """Whether all bytes of the mounted volume are here, for how far the kernel is to read ahead. Quick; may be said again."""

    def forget(self, volume: Volume) -> None:
        """The volume leaves the store. It is not mounted, and nobody makes it ready."""
