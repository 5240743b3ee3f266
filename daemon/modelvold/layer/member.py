"""One member of a tar: its header, and what extended headers say of it → an entry.

Extended attributes, user names, setuid bits and anything unknown in an extended header are dropped. Devices, FIFOs,
sparse files and parts of files are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelvold.layer.extent import ContentOffset
from modelvold.layer.header import Header, Unreadable
from modelvold.layer.pax import nanoseconds, number
from modelvold.layer.toc import Entry, Kind
from modelvold.oci.file_metadata import LATEST
from modelvold.oci.modelpack import safe_path

_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"5": Kind.DIRECTORY,
}
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"D": "a folder of an incremental backup",
    b"M": "the rest of a file from another tape",
    b"V": "a volume label",
}
#: PATH_MAX without its closing NUL. Looked at before anything is made from a name.
_LONGEST_NAME = 4095
#: The largest number that is a user to the kernel; the one above it means "none".
_LARGEST_ID = 0xFFFFFFFE


def member(header: Header, said: Mapping[bytes, bytes], offset: ContentOffset) -> Entry:
    """The entry of which `header` and the pax keywords in `said` speak; its bytes, if it has any, begin at `offset`.

    `link` of a hard link is the path that it names, made safe like any other; whether that is a file, and whether the
    size can be true, only the walker knows. Raises Unreadable, or Malformed for an unsafe path.
    """
    name = said.get(b"path") or header.name
    size = number(said[b"size"], "size") if said.get(b"size") else header.size
    kind = _kind(header, name, size)
    is_file = kind is Kind.FILE
    return Entry(
        _folder(name) if kind is Kind.DIRECTORY else _path(name),
        kind,
        header.mode & 0o777,
        _owner(said.get(b"uid"), header.uid),
        _owner(said.get(b"gid"), header.gid),
        _mtime(said.get(b"mtime"), header.mtime),
        size if is_file else 0,
        offset if is_file else ContentOffset(0),
        "" if is_file else _link(kind, said.get(b"linkpath") or header.link),
    )


def text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _kind(header: Header, name: bytes, size: int) -> Kind:
    kind = _KINDS.get(header.type)
    if kind is None:
        what = _REFUSED.get(header.type, f"a member of the unknown type {header.type!r}")
        raise Unreadable(f"{what}, which no volume can hold")
    # Before ustar a folder was an empty file with a slash behind its name.
    return Kind.DIRECTORY if kind is Kind.FILE and not size and name.endswith(b"/") else kind


def _path(name: bytes) -> str:
    return safe_path(_bounded(name), "surrogateescape")


def _folder(name: bytes) -> str:
    """The path of a folder: slashes and dots behind it mean nothing, `.` is the root."""
    path = _bounded(name)
    parts = path.split("/")
    while len(parts) > 1 and parts[-1] in {"", "."}:
        parts.pop()
    if parts[0] and all(part in {".", ".."} for part in parts):
        return ""
    return safe_path("/".join(parts) if parts[0] else path, "surrogateescape")


def _link(kind: Kind, target: bytes) -> str:
    if kind is Kind.DIRECTORY:
        return ""
    return _bounded(target) if kind is Kind.SYMLINK else _path(target)


def _bounded(name: bytes) -> str:
    if len(name) > _LONGEST_NAME:
        raise Unreadable(f"a path of {len(name)} bytes, more than {_LONGEST_NAME}")
    return text(name)


def _owner(said: bytes | None, of_header: int) -> int:
    owner = number(said, "owner") if said else of_header
    if not 0 <= owner <= _LARGEST_ID:
        raise Unreadable(f"the owner {owner} is impossible")
    return owner


def _mtime(said: bytes | None, of_header: int) -> int:
    return nanoseconds(said) if said else max(0, min(LATEST, of_header * 1_000_000_000))
