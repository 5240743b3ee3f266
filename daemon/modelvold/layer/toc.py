"""The toc: a layer's entries and where their bytes lie in its content.

`encode` and `decode` are its form in the catalog, and in what is handed from one machine to another: the sizes that a
document claims are checked before memory is taken for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec
import zstandard

from modelvold.errors import Malformed
from modelvold.layer.extent import ContentOffset

#: Far beyond any model. Walking, merging and writing the image of so many takes about fifteen seconds of one core, in
#: which Python runs nothing else, and 180 MiB; a Prepare waits for 20.
MOST_ENTRIES = 250_000
#: All paths and link targets of a layer together, in bytes: 256 for each of the most entries. Without it a tar of
#: longest names would take gigabytes of memory.
MOST_TEXT = 64 << 20

#: Of the encoded form; another one is asked for anew, not guessed at.
_VERSION = 1
#: In bytes, before compression: the most text, and 64 bytes of numbers beside each of the most entries.
_LARGEST_DOCUMENT = MOST_TEXT + 64 * MOST_ENTRIES


class Kind(Enum):
    """The values are kept in catalogs."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. `path` is relative, with `/` between non-empty components, none of them `.` or `..`. A directory
    whose path is empty is the layer's root folder: its mode, owner and time.

    Names are text that may hold bytes which are no UTF-8 (`surrogateescape`, PEP 383). `offset` is where a file's bytes
    begin in the content (a multiple of 512), `size` how many there are; `mtime` is in nanoseconds since 1970. `link` is
    a symlink's target, as it was written, or the path of the earlier file of this layer that a hard link is another
    name of; mode, owner and time of a hard link are that file's, whatever its own header says.
    """

    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: ContentOffset = ContentOffset(0)
    link: str = ""


@dataclass(frozen=True, slots=True)
class Toc:
    """`entries` in the order of the layer. `length` is the content's, in bytes; no entry reaches beyond it."""

    entries: tuple[Entry, ...]
    length: int


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    offset: int
    link: bytes


class _Document(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    version: int
    length: int
    rows: Annotated[list[_Row], msgspec.Meta(max_length=MOST_ENTRIES)]


def encode(toc: Toc) -> bytes:
    """`toc` as a document: MessagePack in one zstd frame. Equal tocs make equal documents. Raises Malformed for a name
    that stands for no bytes."""
    try:
        rows = [_row(entry) for entry in toc.entries]
    except UnicodeEncodeError as error:
        raise Malformed(f"the name {error.object[:300]!r} is no valid text") from None
    return zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(_Document(_VERSION, toc.length, rows)))


def decode(document: bytes) -> Toc:
    """The toc that `encode` made into `document`. Raises Malformed for anything else.

    Only the form is checked here, not what the entries say: whoever uses a toc (`layer.cut`, `volume.tree`) does that.
    """
    try:
        found = msgspec.msgpack.decode(_unpacked(document), type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, zstandard.ZstdError, RecursionError) as error:
        raise Malformed(f"not a toc: {error}", "read the layer again") from error
    if found.version != _VERSION:
        raise Malformed(f"a toc of version {found.version}, not {_VERSION}", "read the layer again")
    return Toc(tuple(_entry(row) for row in found.rows), found.length)


def _unpacked(document: bytes) -> bytes:
    size = zstandard.frame_content_size(document)
    if not 0 <= size <= _LARGEST_DOCUMENT:
        raise Malformed(f"not a toc: {size} bytes long, by its own account", "read the layer again")
    return zstandard.ZstdDecompressor().decompress(document, allow_extra_data=False)


def _row(entry: Entry) -> _Row:
    path, link = (name.encode("utf-8", "surrogateescape") for name in (entry.path, entry.link))
    return _Row(
        path, entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.offset, link
    )  # fmt: skip


def _entry(row: _Row) -> Entry:
    path, link = (name.decode("utf-8", "surrogateescape") for name in (row.path, row.link))
    return Entry(path, row.kind, row.mode, row.uid, row.gid, row.mtime, row.size, ContentOffset(row.offset), link)
