"""The seam behind which a volume is shown: `lazy`, `fuse`, `complete` or `directory`, each of which answers the same questions."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.linux import mounts
from modelvold.store.content import Content
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)


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


class Backend(ABC):
    """`is_lazy`: whether a volume is shown before its bytes are here. Where not, all of them are verified before `make_ready`
    is called."""

    name: str
    is_lazy: bool

    @abstractmethod
    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        """Once, before anything is mounted. The volumes that are still shown, and from now on served again. Raises Failing."""

    @abstractmethod
    def is_ready(self, volume: Volume) -> bool:
        """Whether `mount` may be called. Quick."""

    def make_ready(self, volume: Volume, cancelled: Callable[[], bool]) -> None:
        """What takes its time and makes it ready; no lock is held. May be called again. Raises Failure, NotYet once
        `cancelled()`."""

    @abstractmethod
    def mount(self, volume: Volume, target: Path) -> str:
        """Shows `volume` at `target`, an empty folder. Returns what `adopt` will need to know after a restart. Raises OSError."""

    @abstractmethod
    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        """Takes it away; `target` is an empty folder again. `others` are still mounted. Raises OSError(EBUSY) while it is in use."""

    def renew(self, volume: Volume, target: Path) -> str:
        """Shows a mounted volume by a new mount, whose page cache is empty, from one moment to the next; who has the old one, or a bind
        of it, keeps that. As `mount` otherwise."""
        aside = target.with_name(f"{target.name}.new")
        try:
            aside.mkdir(exist_ok=True, mode=0o755)
            note = self.mount(volume, aside)
            mounts.replace(aside, target)
        finally:
            take_away(aside)
        return note

    def is_outgrown(self, volume: Volume) -> bool:
        """Of a mounted one: whether it would be shown in another, better way were it mounted now. Quick."""
        return False

    def asks(self, volume: str) -> bool:
        """Whether the mounted volume's missing bytes are asked for when they are read; where not, that is an error to the reader."""
        return self.is_lazy

    def shown_by(self, volume: str) -> str:
        """The name of the backend by which it is shown: this one's, or that of one which it has taken for it."""
        return self.name

    def read_ahead(self, volume: str, *, is_complete: bool) -> None:
        """Whether all bytes of the mounted volume are here, for how far the kernel is to read ahead. Quick; may be said again."""

    def drop_pages(self, volume: Volume, segments: Sequence[Segment]) -> None:
        """What the kernel's page cache has of them is no longer right. Where this does nothing `mount.stale` does it."""

    def stranded(self) -> Mapping[str, Sequence[str]]:
        """The programs whose mount of a volume is dead, as `name (pid)`, by that volume's id: they must be restarted. Looks at all
        processes there are."""
        return {}

    def forget(self, volume: Volume) -> None:
        """The volume leaves the store. It is not mounted, and nobody makes it ready."""

    def close(self) -> None:
        """The daemon ends. What is shown stays."""


def take_away(path: Path) -> None:
    """All that is mounted at a folder, and the folder; what cannot be taken away stays."""
    with tolerated(path):
        for _ in [entry for entry in mounts.mountinfo() if entry.mount_point == str(path)]:
            mounts.unmount(path, detach=True)
        path.rmdir()


@contextmanager
def tolerated(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("keep path=%s reason=%r", path, error.strerror)
