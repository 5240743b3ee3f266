"""The tree of a volume: what its layers hold, merged.

Rules:

- The layers of a ModelPack artifact are disjoint. A path that two entries claim, or that is a file to one and a folder
  to another, is the producer's mistake: which of the two was meant cannot be known. Only folders may be named twice;
  the later one is shown.
- A folder that no entry names is root's, 0755, and as new as the newest thing below it, so that a tree depends on its
  layers alone. That holds for the tree's own root too, which an entry names by the empty path.
- A hard link is another name of an earlier file of its layer and of nothing else. One of them is the `File`, the others
  are `Link`s to it; what a link's own header says of mode, owner, time and size does not count, as with `tar x`.
- What the kernel or a program could choke on is refused here, by name, before anything is built from it.
- Names are bytes, sorted bytewise: EROFS searches them by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import BLOCK, ContentOffset
from modelvold.layer.toc import MOST_ENTRIES, Entry, Kind, Toc

#: NAME_MAX and PATH_MAX of Linux, the latter without its closing NUL.
LONGEST_NAME = 255
LONGEST_PATH = 4095
#: Far beyond any model; bounds the recursion of whoever walks the tree.
DEEPEST = 256
#: Of all layers together. Folders that no entry names count, and every name of a file.
MOST_NODES = MOST_ENTRIES
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
class Link:
    """One more name of `file`, which is in the tree under its own: two names, one inode."""

    name: bytes
    file: File

    @property
    def mtime(self) -> int:
        return self.file.mtime

    @property
    def layer(self) -> int:
        return self.file.layer


@dataclass(frozen=True, slots=True)
class Symlink:
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    layer: int
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


#: What is not a folder.
Leaf = File | Link | Symlink
Node = Leaf | Folder


@dataclass(frozen=True, slots=True)
class Tree:
    """`nodes` counts all names, the root's and those of links included."""

    root: Folder
    nodes: int

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every node but the root with its path, folders before what is in them, names in bytewise order. A link may
        come before its file.
        """
        waiting: list[tuple[bytes, Node]] = [(child.name, child) for child in reversed(self.root.children)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if isinstance(node, Folder):
                waiting.extend((path + b"/" + child.name, child) for child in reversed(node.children))

    def files(self) -> Iterator[tuple[bytes, File]]:
        """Every file once, with the path of the name that is no `Link`, in the order of `walk`."""
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
    """A folder while its children are still coming. The first entry that needed it was in `layer`, at `claim`."""

    name: bytes
    layer: int
    claim: str
    entry: Entry | None = None
    children: dict[bytes, Leaf | _OpenFolder] = field(default_factory=dict)


class _Growing:
    """The tree while entries are added. `folders` has those above a folder before it.

    No path is kept: each of 256 folders in each other may cost a name, but not the names of all above it.
    """

    def __init__(self) -> None:
        self.folders = [_OpenFolder(b"", 0, "")]
        self.nodes = 1

    def add(self, layer: int, entry: Entry, length: int) -> None:
        names = _checked_names(layer, entry)
        _check(layer, entry, length)
        if entry.kind is Kind.DIRECTORY:
            self._folder(names, layer, entry).entry = entry
            return
        parent = self._folder(names[:-1], layer, entry)
        name = names[-1]
        there = parent.children.get(name)
        if there is not None:
            raise _conflict(there, layer, entry, names)
        self._count()
        parent.children[name] = self._leaf(name, layer, entry)

    def _folder(self, names: list[bytes], layer: int, entry: Entry) -> _OpenFolder:
        """The folder at the path of these `names`, made with all above it where it is missing."""
        folder = self.folders[0]
        for depth, name in enumerate(names, 1):
            below = folder.children.get(name)
            if below is None:
                self._count()
                below = folder.children[name] = _OpenFolder(name, layer, entry.path)
                self.folders.append(below)
            elif not isinstance(below, _OpenFolder):
                raise _conflict(below, layer, entry, names[:depth])
            folder = below
        return folder

    def _leaf(self, name: bytes, layer: int, entry: Entry) -> Leaf:
        if entry.kind is Kind.HARDLINK:
            return Link(name, self._linked(layer, entry))
        if entry.kind is Kind.SYMLINK:
            return Symlink(name, 0o777, entry.uid, entry.gid, entry.mtime, layer, _encoded(layer, entry, entry.link))
        return File(name, entry.mode, entry.uid, entry.gid, entry.mtime, layer, entry.offset, entry.size)

    def _linked(self, layer: int, entry: Entry) -> File:
        """The file that the hard link `entry` names. A path that could not be in the tree is not found in it."""
        found: Leaf | _OpenFolder | None = self.folders[0]
        for name in _encoded(layer, entry, entry.link).split(b"/"):
            found = found.children.get(name) if isinstance(found, _OpenFolder) else None
        if not isinstance(found, File) or found.layer != layer:
            raise _bad(layer, entry, f"a hard link to {entry.link[:300]!r}, which is no earlier file of the layer")
        return found

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise Exhausted(
                f"the model has more than {MOST_NODES} files and folders", "ask the producer to pack them in archives"
            )


def _settled(folders: list[_OpenFolder]) -> Folder:
    """The root, frozen. Folders were added after those above them, so backwards each is ready when it is needed."""
    frozen: dict[int, Folder] = {}
    newest: dict[int, int] = {}
    for folder in reversed(folders):
        children: list[Node] = []
        latest = 0
        for name in sorted(folder.children):
            child = folder.children[name]
            node = frozen.pop(id(child)) if isinstance(child, _OpenFolder) else child
            children.append(node)
            latest = max(latest, node.mtime, newest.pop(id(child), 0))
        folder.children.clear()
        newest[id(folder)] = latest
        entry = folder.entry or Entry("", Kind.DIRECTORY, mode=0o755, mtime=latest)
        frozen[id(folder)] = Folder(folder.name, entry.mode, entry.uid, entry.gid, entry.mtime, tuple(children))
    return frozen[id(folders[0])]


def _checked_names(layer: int, entry: Entry) -> list[bytes]:
    """The components of the entry's path: none for the root, which is a folder."""
    path = _encoded(layer, entry, entry.path)
    if not path and entry.kind is Kind.DIRECTORY:
        return []
    names = path.split(b"/")
    if len(path) > LONGEST_PATH:
        raise _bad(layer, entry, f"the path is longer than {LONGEST_PATH} bytes")
    if len(names) > DEEPEST:
        raise _bad(layer, entry, f"the path is deeper than {DEEPEST} folders")
    if b"\0" in path or not all(names) or b"." in names or b".." in names:
        raise _bad(layer, entry, "the path has an empty component, `.`, `..` or a NUL")
    if max(map(len, names)) > LONGEST_NAME:
        raise _bad(layer, entry, f"a name in it is longer than {LONGEST_NAME} bytes")
    return names


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


def _conflict(there: Leaf | _OpenFolder, layer: int, entry: Entry, names: list[bytes]) -> Malformed:
    """What `names` lead to is `there` already, and the entry wants it to be something else."""
    path = b"/".join(names)
    first = there.claim if isinstance(there, _OpenFolder) else path.decode("utf-8", "surrogateescape")
    claims = " and ".join(f"layer {n} ({claim[:300]!r})" for n, claim in ((there.layer, first), (layer, entry.path)))
    return Malformed(f"{claims} both claim the path {path[:300].decode('utf-8', 'replace')!r}", _REPACK)
