"""The directory backend: a volume is a plain folder of the store, made when all bytes are here, and shown read-only.

    <root>/volumes/<id>.tree/     folders, symbolic links, and hard links to the whole files of its contents (store.whole)

Needs no kernel feature and, with `Links` for places, no privilege. Files have the modes, owners and times of the tree; of an
ordinary user they belong to that user, who may read all of them, and nobody may write them. Volumes that share a layer share
its files, unless they disagree about mode, owner or time: then the second one has a copy.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from modelvold.errors import Exhausted, Refused, Unsupported
from modelvold.layer.extent import ContentOffset, Extent
from modelvold.linux import mounts
from modelvold.linux.files import sync_filesystem
from modelvold.mount.backend import Backend, Known, Volume
from modelvold.mount.places import Places, owners_mode
from modelvold.store import whole
from modelvold.store.store import Store
from modelvold.volume.tree import File, Folder, Link, Symlink, Tree

log = logging.getLogger(__name__)

_TREE, _NEW = ".tree", ".new"
#: chown(2) without the capability, or to who is not in our user namespace.
_NOT_GIVEN = frozenset({errno.EPERM, errno.EINVAL})


class Directory(Backend):
    name = "directory"
    is_lazy = False

    def __init__(self, store: Store, tree_of: Callable[[Volume], Tree], places: Places) -> None:
        """`tree_of` gives a volume's tree, whose layers are its contents in order."""
        self._store = store
        self._tree_of = tree_of
        self._places = places
        self._making = (
            threading.Lock()
        )  # one tree at a time: the disk is the limit, and contents are shared. Held over I/O

    def adopt(self, known: Sequence[Known]) -> Sequence[Volume]:
        sweep_trees(self._store.root / "volumes", {each.volume.id for each in known})
        return [each.volume for each in known if self._places.shows(_tree(each.volume), each.target)]

    def is_ready(self, volume: Volume) -> bool:
        return _tree(volume).is_dir()

    def make_ready(self, volume: Volume, cancelled: Callable[[], bool]) -> None:
        with self._making:
            if self.is_ready(volume):
                return
            self._check_not_read(volume)
            tree = self._tree_of(volume)
            files = _files(tree, len(volume.contents))
            for content, extents in zip(volume.contents, files, strict=True):
                self._store.make_whole(content, extents, cancelled)
            self._make(volume, tree, files)

    def mount(self, volume: Volume, target: Path) -> str:
        self._places.show(_tree(volume), target)
        return ""

    def unmount(self, volume: Volume, target: Path, others: Sequence[Volume]) -> None:
        self._places.hide(target)

    def forget(self, volume: Volume) -> None:
        remove_tree(volume)

    def _check_not_read(self, volume: Volume) -> None:
        """Segments that the kernel reads for a mount of another backend, made before this daemon's start, may not be emptied.
        Raises Refused."""
        images = self._store.root / "volumes"
        read = {
            Path(entry.source).stem: entry.mount_point
            for entry in mounts.mountinfo()
            if entry.fs_type == "erofs" and Path(entry.source).parent == images
        }
        needed = {content.id for content in volume.contents if not content.is_whole}
        for row in self._store.catalog.volumes():
            if row.id in read and needed & set(row.contents):
                raise Refused(
                    f"model {row.reference}: it is still read through the EROFS mount at {read[row.id]}, of another backend",
                    "end the pods that use it, or set [mount] backend as it was",
                )

    def _make(self, volume: Volume, tree: Tree, files: Sequence[Sequence[Extent]]) -> None:
        """Aside, synced, then in place."""
        aside = _aside(volume)
        try:
            _remove(aside)
            aside.mkdir(mode=0o700)
            _Planting(volume, files).plant(aside, tree.root)
            self._sync(aside)
            aside.rename(_tree(volume))
        except OSError as error:
            _remove(aside)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise Exhausted(
                    f"volume {volume.id}: {error.strerror} while its folder was made", "make room"
                ) from error
            raise Unsupported(
                f"volume {volume.id}: this file system cannot hold it as a folder: {error.strerror}: {error.filename}",
                "another backend can show it; see `modelvold doctor`",
            ) from error
        log.info("make tree volume=%s nodes=%d", volume.id, tree.nodes)

    def _sync(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        except OSError as error:
            self._store.on_sync_failed(f"syncfs of {folder}: {error.strerror}")
            self._store.check()
        finally:
            os.close(descriptor)


def remove_tree(volume: Volume) -> None:
    """What was made of a volume, whole or in part."""
    for folder in (_tree(volume), _aside(volume)):
        _remove(folder)


def _tree(volume: Volume) -> Path:
    return volume.image.with_suffix(_TREE)


def _aside(volume: Volume) -> Path:
    return volume.image.with_suffix(_TREE + _NEW)


class _Planting:
    """Makes one tree, from the whole files of its contents."""

    def __init__(self, volume: Volume, files: Sequence[Sequence[Extent]]) -> None:
        self._contents = volume.contents
        self._numbers = [{file.start: number for number, file in enumerate(extents)} for extents in files]
        self._planted: dict[int, Path] = {}  # by the file's id()
        self._is_root = os.geteuid() == 0  # and may give files away, until one is seen that cannot be

    def plant(self, folder: Path, node: Folder) -> None:
        """`folder` exists and can be written; it gets its own mode and time when all is in it."""
        for child in node.children:
            path = folder / os.fsdecode(child.name)
            if isinstance(child, Folder):
                path.mkdir(mode=0o700)
                self.plant(path, child)
            elif isinstance(child, Symlink):
                path.symlink_to(os.fsdecode(child.target))
                self._dress(path, child)
            else:
                self._plant_file(path, child.file if isinstance(child, Link) else child)
        self._dress(folder, node)

    def _plant_file(self, path: Path, file: File) -> None:
        """Names of one file are one file here too."""
        earlier = self._planted.setdefault(id(file), path)
        if earlier is not path:
            path.hardlink_to(earlier)
        elif file.size:
            self._plant_whole(path, file)
        else:
            path.touch(0o600)
            self._dress(path, file)

    def _plant_whole(self, path: Path, file: File) -> None:
        source = self._contents[file.layer].whole(self._numbers[file.layer][file.offset])
        if source.stat().st_nlink == 1:
            self._dress(source, file)
        if self._is_dressed(source, file):
            path.hardlink_to(source)
        else:
            _copied(source, path)
            self._dress(path, file)

    def _mode(self, node: File | Folder | Symlink) -> int:
        if self._is_root:
            return node.mode & 0o777
        return owners_mode(node.mode, is_folder=isinstance(node, Folder))

    def _dress(self, path: Path, node: File | Folder | Symlink) -> None:
        is_link = isinstance(node, Symlink)
        if self._is_root:
            self._give(path, node)
        if not is_link:
            path.chmod(self._mode(node))
        mtime = max(node.mtime, 0)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)

    def _give(self, path: Path, node: File | Folder | Symlink) -> None:
        """To its owner, unless that is a stranger to our user namespace, or we may not."""
        try:
            os.chown(path, node.uid, node.gid, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NOT_GIVEN:
                raise
            log.warning("keep owner path=%s uid=%d gid=%d reason=%r", path, node.uid, node.gid, error.strerror)
            self._is_root = False

    def _is_dressed(self, path: Path, node: File) -> bool:
        seen = path.stat()
        owner = (node.uid, node.gid) if self._is_root else (seen.st_uid, seen.st_gid)
        return (seen.st_mode & 0o7777, seen.st_mtime_ns, seen.st_uid, seen.st_gid) == (
            self._mode(node),
            max(node.mtime, 0),
            *owner,
        )


def sweep_trees(volumes: Path, known: set[str]) -> None:
    """Removes trees that were not finished, and those of volumes that are not `known`, unless they are shown somewhere."""
    shown = {entry.root.rpartition("/")[2] for entry in mounts.mountinfo()}
    for path in [*volumes.glob(f"*{_TREE}{_NEW}"), *volumes.glob(f"*{_TREE}")]:
        if path.name not in shown and path.name.removesuffix(_TREE) not in known:
            log.warning("sweep tree=%s", path)
            _remove(path)


def _files(tree: Tree, layers: int) -> list[list[Extent]]:
    """Of each layer the extents that are files', in order."""
    found: list[set[Extent]] = [set() for _ in range(layers)]
    for _, file in tree.files():
        if file.size:
            found[file.layer].add(Extent(file.offset, ContentOffset(file.offset + file.size)))
    return [sorted(extents) for extents in found]


def _copied(source: Path, target: Path) -> None:
    with source.open("rb") as of, target.open("xb") as to:
        whole.copy(of.fileno(), to.fileno(), 0, 0, source.stat().st_size)


def _remove(tree: Path) -> None:
    """Folders of an ordinary user's tree cannot be written until that is changed."""
    if not tree.is_dir():
        return
    for above, _, _ in os.walk(tree):
        Path(above).chmod(0o700)
    shutil.rmtree(tree)
