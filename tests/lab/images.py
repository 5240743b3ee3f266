"""Ordinary images for tests, pushed into the lab's registry: from one static program to a Debian with an application on it.

A layer names every folder above what it has, as builders write them: so times are the layer's wherever it is unpacked.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.lab import debian, documents
from tests.lab.push import Push, Pushed

#: 2025-03-04T05:06:07.080900001Z
_MTIME = 1741064767080900001
#: vfs_cap_data (linux/capability.h), revision 2: CAP_NET_RAW, permitted and effective.
_NET_RAW = (0x0200_0001).to_bytes(4, "little") + (1 << 13).to_bytes(4, "little") + bytes(12)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a layer's tar; `target` is a link's, `device` a node's numbers, `mtime` in nanoseconds."""

    path: str
    type: bytes = tarfile.REGTYPE
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = _MTIME
    target: str = ""
    device: tuple[int, int] = (0, 0)
    attributes: Mapping[str, bytes] = field(default_factory=dict)


def pause(push: Push) -> Pushed:
    """A static program that sleeps."""
    return push.image("lab/pause")


def busybox(push: Push) -> Pushed:
    """A static busybox with a few files."""
    return push.image("lab/busybox", files={"/etc/motd": b"busybox\n", "/model/none": b"", "/bin/tool": b"#!/bin/sh\n"})


def debian_base(push: Push) -> Pushed:
    """A Debian, in one layer. Raises debian.Unavailable."""
    return push.tars([debian.base_layer().read_bytes()], "lab/debian", debian.OLDEST)


def application(push: Push) -> Pushed:
    """Layers on that Debian which write, delete, empty, replace, rename and change what lies below them."""
    return push.tars([debian.base_layer().read_bytes(), *_layers()], "lab/application")


def small(push: Push) -> Pushed:
    """The application's layers on a static busybox."""
    return push.tars([documents.busybox_layer(debian.busybox()), *_layers()], "lab/small")


def _layers() -> list[bytes]:
    """Packed, but for the last, which is as it is."""
    packed = [gzip.compress(layer(*members), 1) for members in (_WRITTEN, _DELETED, _CHANGED)]
    return [*packed, layer(*_WRITTEN_AGAIN)]


def layer(*members: Member) -> bytes:
    """A tar of `members` in their order, the folders above them first where none of `members` is them."""
    named = {member.path for member in members}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for member in members:
            for path in _above(member.path):
                if path not in named:
                    named.add(path)
                    _add(tar, folder(path))
            _add(tar, member)
    return whole.getvalue()


def file(path: str, content: bytes = b"", mode: int = 0o644, attributes: Mapping[str, bytes] | None = None) -> Member:
    return Member(path, content=content, mode=mode, attributes=attributes or {})


def folder(path: str, mode: int = 0o755) -> Member:
    return Member(path, tarfile.DIRTYPE, mode=mode)


def symlink(path: str, target: str) -> Member:
    return Member(path, tarfile.SYMTYPE, mode=0o777, target=target)


def link(path: str, target: str) -> Member:
    """Another name of a file of the same layer."""
    return Member(path, tarfile.LNKTYPE, target=target)


def gone(path: str) -> Member:
    """What layers below have at `path` is deleted (OCI image layer, whiteout files)."""
    above, _, name = path.rpartition("/")
    return Member(f"{above}/.wh.{name}")


def emptied(path: str) -> Member:
    """Nothing of what layers below have in the folder is seen any more."""
    return Member(f"{path}/.wh..wh..opq")


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _add(tar: tarfile.TarFile, member: Member) -> None:
    header = tarfile.TarInfo(member.path)
    header.type, header.linkname, header.mode = member.type, member.target, member.mode
    header.uid, header.gid, header.size = member.uid, member.gid, len(member.content)
    header.devmajor, header.devminor = member.device
    header.pax_headers = {
        "mtime": f"{member.mtime // 10**9}.{member.mtime % 10**9:09}",
        **{
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
            for name, value in member.attributes.items()
        },
    }
    tar.addfile(header, io.BytesIO(member.content))


_DEEP = "app/" + "/".join(f"folder-{number:03}-of-a-path-that-ustar-cannot-have" for number in range(8))

#: A mode, an owner, a time, a name or a type of everything that a layer can have.
_WRITTEN = (
    folder("app"),
    replace(folder("app/empty", 0o700), uid=33, gid=33, mtime=0),
    folder("app/shared", 0o1777),
    replace(folder("app/group", 0o2775), gid=50),
    replace(folder("app/data"), attributes={"user.lab": b"folder"}),
    file("app/data/first", b"1" * 100_000),
    file("app/data/below/second", b"2"),
    file("app/bin/tool", b"#!/bin/sh\necho tool\n", 0o755),
    file("app/bin/root", b"#!/bin/sh\n", 0o4755),
    file("app/bin/group", b"#!/bin/sh\n", 0o2755),
    file("app/bin/ping", b"#!/bin/sh\n", 0o755, {"security.capability": _NET_RAW}),
    file("app/bin/pong", b"#!/bin/sh\n", 0o755, {"security.capability": _NET_RAW}),
    file("app/attributed", b"a", attributes={"user.lab": b"file", "user.empty": b"", "user.bytes": b"\x00\xff=\n"}),
    file("app/locked", b"nobody reads this", 0),
    replace(file("app/owned", b"o"), uid=100_000, gid=4_000_000_000, mtime=1),
    file("app/large", bytes(range(256)) * 12_289),
    file(f"app/{'n' * 255}", b"long"),
    file("app/ünïcode 名 \\ and a space", b"u"),
    file(f"{_DEEP}/deep", b"d"),
    file("app/one", b"of three names"),
    link("app/two", "app/one"),
    link("app/three", "app/one"),
    symlink("app/relative", "data/first"),
    symlink("app/absolute", "/etc/issue"),
    symlink("app/dangling", "nowhere"),
    Member("app/pipe", tarfile.FIFOTYPE, mode=0o600),
    Member("app/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
    Member("app/disk", tarfile.BLKTYPE, mode=0o660, gid=6, device=(7, 99)),
    file("app/old/file", b"old"),
    file("app/old/more/file", b"old"),
    file("app/becomes-folder", b"file"),
    file("app/becomes-file/inside", b"folder"),
    file("app/becomes-link", b"file"),
    file("app/name", b"of many"),
)
_DELETED = (
    gone("etc/issue.net"),
    gone("usr/share/common-licenses"),
    gone("app/old"),
    gone("app/two"),
    replace(folder("app/data", 0o750), uid=1000, gid=1000),
    emptied("app/data"),
    file("app/data/fresh", b"f"),
    file("app/becomes-folder/inside", b"folder"),
    file("app/becomes-file", b"file"),
    symlink("app/becomes-link", "becomes-file"),
)
_CHANGED = (
    replace(file("app/bin/tool", b"#!/bin/sh\necho tool\n", 0o711), uid=1000, gid=1001),
    file("app/bin/ping", b"#!/bin/sh\n", 0o755),
    file("etc/issue", b"Application\n"),
    folder("app/shared", 0o500),
    gone("app/name"),
    file("app/renamed", b"of many"),
    folder("usr/share/base-files", 0o711),
)
_WRITTEN_AGAIN = (
    file("etc/issue.net", b"again\n"),
    file("usr/share/common-licenses/OURS", b"again\n"),
    file("app/old/file", b"again"),
    file("app/one", b"of three names"),
    link("app/two", "app/one"),
)
