"""The tree of a volume: what its layers hold, merged.

Rules:

- The layers of a ModelPack artifact are disjoint. A path that two entries claim, or that is a file to one and a folder
  to another, is the producer's mistake: which of the two was meant cannot be known. Only folders may be named twice;
  the later one is shown.
- A folder that no entry names is root's, 0755, and as new as the newest thing below it, so that a tree depends on its
  layers alone.
- What the kernel or a program could choke on is refused here, by name, before anything is built from it.
- Names are bytes, sorted bytewise: EROFS searches them by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import BLOCK, ContentOffset
from modelvold.layer.toc import Entry, Kind, Toc

#: NAME_MAX and PATH_MAX of Linux, the latter without its closing NUL.
LONGEST_NAME = 255
LONGEST_PATH = 4095
#: Far beyond any model; bounds the recursion of whoever walks the tree.
DEEPEST = 256
#: What fits an image of 1 GiB. Folders that no entry names count.
MOST_NODES = 1_000_000
#: The largest number that is a user to the kernel; the one above it means "none".
_LARGEST_ID = 0xFFFFFFFE
_REPACK = "ask the producer to repack the model"


@dataclass(frozen=True, slots=True)
class File:
    """`size` bytes at `offset` in the content of the layer number `layer`. `mtime` is in nanoseconds since 1970."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    layer: int
    offset: ContentOffset
    size: int


@dataclass(frozen=True, slots=True)
class Symlink:
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    target: bytes


@dataclass(frozen=True, slots=True)
class Folder:
    """`children` are sorted by name, bytewise. The root's name is empty."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    children: tuple[Node, ...] = field(repr=False)


Node = File | Symlink | Folder


@dataclass(frozen=True, slots=True)
class Tree:
    """`nodes` counts all of them, the root included."""

    root: Folder
    nodes: int

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every node but the root with its path, folders before what is in them, names in bytewise order."""
        waiting: list[tuple[bytes, Node]] = [(child.name, child) for child in reversed(self.root.children)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if isinstance(node, Folder):
                waiting.extend((path + b"/" + child.name, child) for child in reversed(node.children))

    def files(self) -> Iterator[tuple[bytes, File]]:
        """Every file with its path, in the order of `walk`."""
        return ((path, node) for path, node in self.walk() if isinstance(node, File))


def merge(layers: Sequence[Toc]) -> Tree:
    """The one tree that `layers` make together. Layers are numbered from 0 in their order, in nodes and in messages.

    Raises Malformed where entries conflict or one of them cannot be shown, Exhausted where there are more than
    `MOST_NODES`.
    """
    growing = _Growing()
    for number, toc in enumerate(layers):
        for entry in toc.entries:
            growing.add(number, entry, toc.length)
    return Tree(_settled(growing.folders), growing.nodes)


@dataclass(slots=True)
class _OpenFolder:
    """A folder while its children are still coming. `claim` is the entry that made it necessary, for messages."""

    name: bytes
    claim: tuple[int, str]
    entry: Entry | None = None
    children: dict[bytes, File | Symlink | _OpenFolder] = field(default_factory=dict)
    claims: dict[bytes, tuple[int, str]] = field(default_factory=dict)


class _Growing:
    """The tree while entries are added. `folders` has each folder by its path, parents before children."""

    def __init__(self) -> None:
        self.folders: dict[bytes, _OpenFolder] = {b"": _OpenFolder(b"", (0, ""))}
        self.nodes = 1

    def add(self, layer: int, entry: Entry, length: int) -> None:
        path = _checked_path(layer, entry)
        _check(layer, entry, length)
        if entry.kind is Kind.DIRECTORY:
            self._folder(path, (layer, entry.path)).entry = entry
            return
        above, _, name = path.rpartition(b"/")
        parent = self._folder(above, (layer, entry.path))
        there = parent.children.get(name)
        if there is not None:
            first = there.claim if isinstance(there, _OpenFolder) else parent.claims[name]
            raise _conflict(first, (layer, entry.path), path)
        self._count()
        parent.claims[name] = (layer, entry.path)
        parent.children[name] = _leaf(name, layer, entry)

    def _folder(self, path: bytes, claim: tuple[int, str]) -> _OpenFolder:
        """The folder at `path`, made with all above it where it is missing."""
        missing: list[bytes] = []
        above = path
        while above not in self.folders:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        folder = self.folders[above]
        for new in reversed(missing):
            name = new.rpartition(b"/")[2]
            if name in folder.children:
                raise _conflict(folder.claims[name], claim, new)
            self._count()
            below = _OpenFolder(name, claim)
            folder.children[name] = self.folders[new] = below
            folder = below
        return folder

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise Exhausted(
                f"the model has more than {MOST_NODES} files and folders", "ask the producer to pack them in archives"
            )


def _settled(folders: dict[bytes, _OpenFolder]) -> Folder:
    """The root, frozen. Folders were added after those above them, so backwards each is ready when it is needed."""
    frozen: dict[int, Folder] = {}
    newest: dict[int, int] = {}
    for folder in reversed(folders.values()):
        children: list[Node] = []
        times: list[int] = []
        for _, child in sorted(folder.children.items()):
            node = frozen[id(child)] if isinstance(child, _OpenFolder) else child
            children.append(node)
            times.append(max(node.mtime, newest.get(id(child), node.mtime)))
        newest[id(folder)] = max(times, default=0)
        entry = folder.entry or Entry("", Kind.DIRECTORY, mode=0o755, mtime=newest[id(folder)])
        frozen[id(folder)] = Folder(folder.name, entry.mode, entry.uid, entry.gid, entry.mtime, tuple(children))
    return frozen[id(folders[b""])]


def _leaf(name: bytes, layer: int, entry: Entry) -> File | Symlink:
    if entry.kind is Kind.SYMLINK:
        return Symlink(name, 0o777, entry.uid, entry.gid, entry.mtime, _encoded(layer, entry, entry.link))
    return File(name, entry.mode, entry.uid, entry.gid, entry.mtime, layer, entry.offset, entry.size)


def _checked_path(layer: int, entry: Entry) -> bytes:
    path = _encoded(layer, entry, entry.path)
    names = path.split(b"/")
    if len(path) > LONGEST_PATH:
        raise _bad(layer, entry, f"the path is longer than {LONGEST_PATH} bytes")
    if len(names) > DEEPEST:
        raise _bad(layer, entry, f"the path is deeper than {DEEPEST} folders")
    if b"\0" in path or not all(names) or b"." in names or b".." in names:
        raise _bad(layer, entry, "the path has an empty component, `.`, `..` or a NUL")
    if max(map(len, names)) > LONGEST_NAME:
        raise _bad(layer, entry, f"a name in it is longer than {LONGEST_NAME} bytes")
    return path


def _check(layer: int, entry: Entry, length: int) -> None:
    if not (0 <= entry.uid <= _LARGEST_ID and 0 <= entry.gid <= _LARGEST_ID):
        raise _bad(layer, entry, f"the owner {entry.uid}:{entry.gid} is impossible")
    if entry.kind is Kind.FILE and (entry.size < 0 or not 0 <= entry.offset <= length - entry.size):
        raise _bad(layer, entry, f"its {entry.size} bytes at {entry.offset} reach beyond the layer's {length}")
    if entry.kind is Kind.FILE and entry.offset % BLOCK:
        raise _bad(layer, entry, f"its bytes begin at {entry.offset}, which is no multiple of {BLOCK}")
    if entry.kind is Kind.SYMLINK and not (
        0 < len(_encoded(layer, entry, entry.link)) <= LONGEST_PATH and "\0" not in entry.link
    ):
        raise _bad(layer, entry, f"the symbolic link's target is empty, longer than {LONGEST_PATH} bytes or has a NUL")


def _encoded(layer: int, entry: Entry, text: str) -> bytes:
    """The bytes a tar had, where its names were not UTF-8 and were decoded with `surrogateescape`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise _bad(layer, entry, "the name is no valid text") from error


def _bad(layer: int, entry: Entry, why: str) -> Malformed:
    return Malformed(f"layer {layer}, {entry.path[:300]!r}: {why}", _REPACK)


def _conflict(first: tuple[int, str], second: tuple[int, str], path: bytes) -> Malformed:
    where = path[:300].decode("utf-8", "replace")
    claims = " and ".join(f"layer {layer} ({claim[:300]!r})" for layer, claim in (first, second))
    return Malformed(f"{claims} both claim the path {where!r}", _REPACK)
