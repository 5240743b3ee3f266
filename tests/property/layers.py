"""Layers to test with: raw files, and real tars in every format that Python writes. Files' bytes follow from a seed, so
that an example is small and its content is not.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from modelvold.layer.raw import toc_of_raw
from modelvold.layer.tar import TarWalker
from modelvold.layer.toc import Toc

FORMS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
#: The largest in octal digits, and the largest there is.
_IN_DIGITS, _LARGEST = 0o7777777, 0xFFFFFFFE
OWNERS = (0, 1, 1000, 65534, _IN_DIGITS, _LARGEST)
#: As far as a walker is fed beyond what it wants: some headers lie in that, some do not.
_FED = 4 << 10


@lru_cache(maxsize=16)
def content(seed: int, size: int) -> bytes:
    """`size` bytes that differ from their neighbours', and from those of any other seed."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Sample:
    """One file. `mtime` in nanoseconds, here and below."""

    path: str
    size: int
    seed: int
    mode: int = 0o644
    mtime: int = 0
    uid: int = 0
    gid: int = 0

    @property
    def content(self) -> bytes:
        return content(self.seed, self.size)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that a tar names; the root's path is empty."""

    path: str
    mode: int = 0o755
    mtime: int = 0
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Symlink:
    path: str
    target: str
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    mode: ClassVar[int] = 0o777


@dataclass(frozen=True, slots=True)
class HardLink:
    """Another name of the file at the path `target`, earlier in the same tar. Its header lies, which must not matter."""

    path: str
    target: str
    mode: ClassVar[int] = 0o7
    mtime: ClassVar[int] = 4_242_000_000_000
    uid: ClassVar[int] = 4242
    gid: ClassVar[int] = 4343


Member = Sample | Folder | Symlink | HardLink


@dataclass(frozen=True, slots=True)
class Raw:
    """A layer that is one file."""

    sample: Sample
    is_tar: ClassVar[bool] = False

    @property
    def path(self) -> str:
        """For the layer's annotation."""
        return self.sample.path

    @property
    def content(self) -> bytes:
        return self.sample.content

    @property
    def mode(self) -> int:
        """For the layer's metadata, where 0 would say that it is not known. What is shown is the same."""
        return self.sample.mode & 0o777 or 0o444

    @property
    def mtime(self) -> int:
        return self.sample.mtime

    @property
    def toc(self) -> Toc:
        return toc_of_raw(self.sample.path, self.sample.size, self.sample.mode, self.sample.mtime)

    @property
    def members(self) -> tuple[Member, ...]:
        """As they are shown."""
        return (replace(self.sample, mode=self.sample.mode | 0o444, uid=0, gid=0),)


@dataclass(frozen=True, slots=True)
class Tar:
    """A layer that is an archive of `members` in one of `FORMS`, with `./` in front of its names if `is_dotted`."""

    members: tuple[Member, ...]
    form: int = tarfile.PAX_FORMAT
    is_dotted: bool = False
    is_tar: ClassVar[bool] = True
    mode: ClassVar[int] = 0
    mtime: ClassVar[int] = 0

    @property
    def path(self) -> str:
        """For the layer's annotation: that of its only file; of others it has to say nothing."""
        files = [member.path for member in self.members if isinstance(member, Sample | HardLink)]
        return files[0] if len(files) == 1 else ""

    @property
    def content(self) -> bytes:
        return _archive(self)

    @property
    def toc(self) -> Toc:
        return _walked(self)


Layer = Raw | Tar


def packed(members: Iterable[Member], form: int = tarfile.PAX_FORMAT, *, is_dotted: bool = False) -> Tar:
    """A tar of `members`, their numbers as `form` can have them; GNU's where ustar has no room for a name."""
    kept = tuple(_held(member, form) for member in members)
    if form == tarfile.USTAR_FORMAT and not all(_fits_ustar(member, is_dotted) for member in kept):
        form = tarfile.GNU_FORMAT
    return Tar(kept, form, is_dotted)


def _held(member: Member, form: int) -> Member:
    if form == tarfile.PAX_FORMAT or isinstance(member, HardLink):
        return member
    most = _IN_DIGITS if form == tarfile.USTAR_FORMAT else _LARGEST
    seconds = member.mtime // 10**9
    return replace(member, mtime=seconds * 10**9, uid=min(member.uid, most), gid=min(member.gid, most))


def _fits_ustar(member: Member, is_dotted: bool) -> bool:
    try:
        _header(member, is_dotted).tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    except ValueError:
        return False
    return True


@lru_cache(maxsize=8)
def _archive(layer: Tar) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(
        fileobj=whole, mode="w", format=layer.form, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for member in layer.members:
            header = _header(member, layer.is_dotted)
            if layer.form == tarfile.PAX_FORMAT:
                header.pax_headers = {"mtime": f"{member.mtime // 10**9}.{member.mtime % 10**9:09}"}
            archive.addfile(header, io.BytesIO(member.content) if isinstance(member, Sample) else None)
    return whole.getvalue()


@lru_cache(maxsize=64)
def _walked(layer: Tar) -> Toc:
    whole = memoryview(layer.content)
    walker = TarWalker(len(whole))
    while (wanted := walker.wanted) is not None:
        walker.feed(wanted.start, whole[wanted.start : max(wanted.end, wanted.start + _FED)])
    return walker.toc()


def _header(member: Member, is_dotted: bool) -> tarfile.TarInfo:
    start = "./" if is_dotted else ""
    header = tarfile.TarInfo(start + member.path or ".")
    header.mode, header.uid, header.gid = member.mode, member.uid, member.gid
    header.mtime = member.mtime // 10**9
    if isinstance(member, Sample):
        header.size = member.size
    elif isinstance(member, Folder):
        header.type = tarfile.DIRTYPE
    elif isinstance(member, Symlink):
        header.type, header.linkname = tarfile.SYMTYPE, member.target
    else:
        header.type, header.linkname = tarfile.LNKTYPE, start + member.target
    return header
