"""A folder on disk → the files to pack, and what was left out and why.

Rules: regular files only. A symlink is packed as what it leads to, if that lies in the folder; one that leads out
of it is refused, because what is packed must not depend on the machine around the folder. Nothing is left out in
silence.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from modelvold.errors import InvalidInput, Malformed
from modelvold.oci.document import MOST_LAYERS
from modelvold.oci.modelpack import safe_path
from modelvold.pack.classify import natural_order, reason_to_skip


@dataclass(frozen=True, slots=True)
class Found:
    """A file to pack: `path` in the model, `file` on disk with symlinks resolved; `mtime` in nanoseconds since 1970.

    Device, inode, size and mtime tell a file that changed since it was found.
    """

    path: str
    file: Path
    size: int
    mode: int
    mtime: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Skipped:
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Walk:
    """`files` and `skipped` in natural order."""

    files: tuple[Found, ...]
    skipped: tuple[Skipped, ...]


def walk(folder: Path) -> Walk:
    """Everything below `folder`. Raises InvalidInput, naming the entry, for what cannot be packed or read."""
    try:
        root = folder.resolve(strict=True)
        walker = _Walker(root)
        walker.enter(root, "", (root,))
    except OSError as error:
        raise InvalidInput(
            f"{error.filename or folder}: {error.strerror}", "name a folder whose files can be read"
        ) from error
    return Walk(
        tuple(sorted(walker.files, key=lambda found: natural_order(found.path))),
        tuple(sorted(walker.skipped, key=lambda skipped: natural_order(skipped.path))),
    )


class _Walker:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: list[Found] = []
        self.skipped: list[Skipped] = []

    def enter(self, folder: Path, prefix: str, above: tuple[Path, ...]) -> None:
        """`above` are the folders entered so far, resolved: a link back to one of them would never end."""
        empty = True
        for child in folder.iterdir():
            empty = False
            path = f"{prefix}{child.name}"
            reason = reason_to_skip(child.name)
            if reason:
                self.skipped.append(Skipped(path, reason))
            else:
                self._take(child, path, above)
        if empty and prefix:
            self.skipped.append(Skipped(prefix.rstrip("/"), "an empty folder"))

    def _take(self, child: Path, path: str, above: tuple[Path, ...]) -> None:
        _check_path(path)
        target = self._resolved(child, path) if child.is_symlink() else child
        found = target.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            if target in above:
                raise InvalidInput(f"{path!r}: a symlink to a folder above itself", "remove it")
            self.enter(target, f"{path}/", (*above, target))
        elif stat.S_ISREG(found.st_mode):
            mode, mtime = stat.S_IMODE(found.st_mode), max(0, found.st_mtime_ns)
            self.files.append(Found(path, target, found.st_size, mode, mtime, found.st_dev, found.st_ino))
            if len(self.files) > MOST_LAYERS:
                raise InvalidInput(
                    f"{self._root}: more than {MOST_LAYERS} files", "name the folder that holds one model's files"
                )
        else:
            raise InvalidInput(f"{path!r}: neither a file nor a folder", "remove it, or pack another folder")

    def _resolved(self, link: Path, path: str) -> Path:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise InvalidInput(
                f"{path!r}: a symlink that leads nowhere ({link.readlink()})", "remove it or mend it"
            ) from error
        if not target.is_relative_to(self._root):
            raise InvalidInput(
                f"{path!r}: a symlink that leads out of the folder, to {target}",
                "make a copy with the files themselves (cp -rL) and pack that",
            )
        return target


def _check_path(path: str) -> None:
    try:
        path.encode()
        safe_path(path)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{path!r}: the name is not UTF-8, which an artifact cannot hold", "rename it") from error
    except Malformed as error:
        raise InvalidInput(error.message, "rename it, or pack a folder that is less deep") from error
