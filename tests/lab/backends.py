"""The backends that one suite runs over, and what differs between them, each in one line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """`is_lazy`: a volume is shown before its bytes are here. Others fetch all of them first, whatever is read.
    `is_erofs`: it is an EROFS mount, which fsck can check against the segments; in a directory there are neither.
    `extra_links`: how many names more than its own a file has. The store of a directory keeps one of its own.
    """

    name: str
    is_lazy: bool = False
    is_erofs: bool = True
    extra_links: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def setting(self) -> dict[str, object]:
        """For `[mount]`."""
        return {"backend": self.name}


LAZY = Backend("lazy", is_lazy=True)
FUSE = Backend("fuse", is_lazy=True, is_erofs=False)
COMPLETE = Backend("complete")
DIRECTORY = Backend("directory", is_erofs=False, extra_links=1)
BACKENDS = (LAZY, FUSE, COMPLETE, DIRECTORY)
