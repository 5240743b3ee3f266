"""Walking an uncompressed tar: its headers → the layer's toc, without the bytes of its files.

Sans-IO: `wanted` says which bytes come next, `feed` takes them. `layer.header` and `layer.pax` know the formats,
`layer.member` what a member may be. The rules of the walk:

- A file's bytes are never looked at. What is behind them is found by their size, so a size that could be understood in
  two ways is refused.
- Links and folders have no bytes, whatever size their header gives (so Go's `isHeaderOnlyType`, CPython's
  `TarInfo._proc_builtin`, and for hard links GNU tar).
- A special header (`x`: pax, `L`, `K`: GNU's long names) says something of the one member behind it, a global one (`g`)
  of all of them. Two that say the same of one member are refused: some readers believe the first, some the last.
- A hard link names a file before it, so there are no loops.
- The end is two blocks of zeros, one at the content's end, or the content's end behind whole members. What follows the
  end is not part of the archive.
"""

from __future__ import annotations

from dataclasses import replace

from modelvold.errors import Exhausted, Malformed
from modelvold.layer.extent import BLOCK, ContentOffset, Extent, padded
from modelvold.layer.header import SPECIAL, Header, Unreadable, read_header
from modelvold.layer.member import member, text
from modelvold.layer.pax import records
from modelvold.layer.toc import MOST_ENTRIES, MOST_TEXT, Entry, Kind, Toc

#: What a special header, by its type, says of a member; `x` and `g` hold records instead.
_LONG_NAMES = {b"L": b"path", b"K": b"linkpath"}
#: The keywords that a volume has a use for.
_KEPT = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_GLOBAL = frozenset({b"uid", b"gid", b"mtime"})
_PARTS = frozenset({b"GNU.volume.filename", b"GNU.volume.size", b"GNU.volume.offset"})
#: In bytes; as Go has it (`maxSpecialFileSize`). Linux knows no path and no attribute near it.
_LONGEST_SPECIAL = 1 << 20
_ZEROS = bytes(BLOCK)
_REPACK = "ask the producer to repack the model"


class TarWalker:
    """One walk over a tar of `length` bytes.

    Memory grows with the entries alone, and is bounded. A walker that has raised is of no further use.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._entries: list[Entry] = []
        self._text = 0
        #: The paths that a hard link may name, with the file that each is.
        self._files: dict[str, str] = {}
        self._globals: dict[bytes, bytes] = {}
        #: What the special headers so far say of the member to come, and their types.
        self._said: dict[bytes, bytes] = {}
        self._special = b""
        #: The header at `_at`, or the one whose content is at `_at`; what it is and how long, for the latter.
        self._block = b""
        self._open: Header | None = None
        self._zeros = False
        self._globals_seen = 0
        self._at = 0
        self._need = 0
        self._await_header(0)

    @property
    def wanted(self) -> Extent | None:
        """The bytes needed next, in one piece: a header, or the content of a special one (at most 1 MiB). None when the
        archive has ended."""
        if not self._need:
            return None
        return Extent(ContentOffset(self._at), ContentOffset(self._at + self._need))

    @property
    def entries(self) -> int:
        """How many have been found so far."""
        return len(self._entries)

    def feed(self, start: ContentOffset, content: bytes | bytearray | memoryview) -> None:
        """Takes the content's bytes from `start`, which is at or before what is wanted, as far as headers lie in them
        whole. The bytes that are `wanted` afterwards must be given from their start, also where some of them were in
        `content`.

        Raises Malformed, naming the member, for what is no tar or none that can be shown; Exhausted beyond the bounds
        of `layer.toc`; ValueError where `content` leaves bytes out.
        """
        try:
            with memoryview(content) as view:
                while self._need:
                    begin = self._at - start
                    end = begin + self._need
                    if begin < 0:
                        raise ValueError(f"fed from {start} on, wanted from {self._at} on")
                    if end > len(view):
                        return
                    self._take(bytes(view[begin:end]))
        except (Unreadable, Malformed) as error:
            cause = error.message if isinstance(error, Malformed) else str(error)
            raise Malformed(f"{self._member()}: {cause}", _REPACK) from None

    def toc(self) -> Toc:
        """All entries, in the archive's order. Raises ValueError before the archive has ended."""
        if self._need:
            raise ValueError(f"the archive goes on at {self._at}")
        return Toc(tuple(self._entries), self._length)

    def _take(self, piece: bytes) -> None:
        if self._open is None:
            self._block = piece
            self._on_header(piece)
        else:
            self._on_special(self._open, piece[: self._open.size])

    def _member(self) -> str:
        """What is being read, for messages. A wrong header still has bytes where its name should be."""
        name = self._said.get(b"path") or self._block[:100].partition(b"\0")[0]
        at = self._at - BLOCK if self._open else self._at
        if name:
            return f"tar member {text(name)[:200]!r} at byte {at}"
        return f"tar header at byte {at}" + (f", after {self._entries[-1].path[-200:]!r}" if self._entries else "")

    def _await_header(self, at: int) -> None:
        self._open = None
        self._at = at
        self._need = min(BLOCK, self._length - at)
        if not self._need and self._special:
            raise Unreadable("the tar ends between an extended header and its member")

    def _on_header(self, block: bytes) -> None:
        if len(block) < BLOCK:
            raise Unreadable(f"the tar ends inside a header, after {self._length} bytes")
        if block == _ZEROS:
            self._on_zeros()
            return
        if self._zeros:
            raise Unreadable("it follows a lone block of zeros, which is no end of a tar")
        header = read_header(block)
        if header.type in SPECIAL:
            self._on_special_header(header)
        else:
            self._on_member(header)

    def _on_zeros(self) -> None:
        if self._special:
            raise Unreadable("the tar ends between an extended header and its member")
        if self._zeros:
            self._need = 0
        else:
            self._zeros = True
            self._await_header(self._at + BLOCK)

    def _on_special_header(self, header: Header) -> None:
        if header.type in self._special or (header.type == b"g" and self._special):
            raise Unreadable(f"an extended header ({header.type.decode()}) where a member should follow another one")
        if header.size > _LONGEST_SPECIAL:
            raise Unreadable(f"an extended header of {header.size} bytes, more than {_LONGEST_SPECIAL}")
        self._check_size(header.size)
        self._open = header
        self._at += BLOCK
        self._need = padded(header.size)
        if not self._need:
            self._on_special(header, b"")

    def _on_special(self, header: Header, content: bytes) -> None:
        if header.type == b"g":
            self._on_global(content)
        else:
            self._on_extended(_long_name(header.type, content) if header.type in _LONG_NAMES else _extended(content))
            self._special += header.type
        self._await_header(self._at + padded(header.size))

    def _on_global(self, content: bytes) -> None:
        new = _extended(content)
        impossible = sorted(new.keys() - _GLOBAL)
        if impossible:
            raise Unreadable(f"a global header that gives all members one {impossible[0].decode()}")
        self._globals = {key: value for key, value in (self._globals | new).items() if value}
        self._globals_seen += 1
        self._count()

    def _on_extended(self, new: dict[bytes, bytes]) -> None:
        twice = sorted(new.keys() & self._said.keys()) if self._said else []
        if twice:
            raise Unreadable(f"two extended headers each say its {twice[0].decode()}")
        self._said |= new

    def _on_member(self, header: Header) -> None:
        said = self._globals | self._said if self._special else self._globals
        entry = member(header, said, ContentOffset(self._at + BLOCK))
        if entry.kind is Kind.FILE:
            self._check_size(entry.size)
            self._files[entry.path] = entry.path
        elif entry.kind is Kind.HARDLINK:
            entry = replace(entry, link=self._file(entry.link))
            self._files[entry.path] = entry.link
        self._entries.append(entry)
        self._text += _length(entry.path) + _length(entry.link)
        self._count()
        if self._special:
            self._said, self._special = {}, b""
        self._await_header(self._at + BLOCK + padded(entry.size))

    def _check_size(self, size: int) -> None:
        """Raises Unreadable unless `size` bytes fit behind the header at `_at`, with what fills their last block."""
        if size < 0:
            raise Unreadable(f"a size of {size} bytes")
        end = self._at + BLOCK + size
        if end > self._length:
            raise Unreadable(f"its {size} bytes end at {end}, beyond the tar's {self._length}")
        if padded(end) > self._length:
            raise Unreadable(f"the tar ends at {self._length}, inside the last block of its {size} bytes")

    def _file(self, path: str) -> str:
        """The path of the file that a hard link to `path` is another name of."""
        if path not in self._files:
            raise Unreadable(f"a hard link to {path[:200]!r}, which is no file before it")
        return self._files[path]

    def _count(self) -> None:
        if len(self._entries) + self._globals_seen > MOST_ENTRIES:
            raise Exhausted(
                f"the layer has more than {MOST_ENTRIES} files and folders", "ask the producer to pack them in archives"
            )
        if self._text > MOST_TEXT:
            raise Exhausted(
                f"the layer's paths and links are longer than {MOST_TEXT >> 20} MiB together",
                "ask the producer for shorter ones",
            )


def _long_name(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    return {_LONG_NAMES[kind]: content.partition(b"\0")[0]}


def _extended(content: bytes) -> dict[bytes, bytes]:
    """What a pax header says that matters here. An empty value takes back what was said before."""
    said = {}
    for keyword, value in records(content):
        if keyword in _KEPT:
            said[keyword] = value
        elif keyword.startswith(b"GNU.sparse"):
            raise Unreadable("a sparse file, which no volume can hold")
        elif keyword in _PARTS:
            raise Unreadable("a part of a file from another tape, which no volume can hold")
    return said


def _length(name: str) -> int:
    """In bytes."""
    return len(name.encode("utf-8", "surrogateescape"))
