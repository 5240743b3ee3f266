"""Raw layers: the blob is one file's bytes, and the content is the blob."""

from __future__ import annotations

from modelvold.layer.extent import ContentOffset
from modelvold.layer.toc import Entry, Kind, Toc

#: Packers record the mode of the machine they ran on, often 0600; whoever may see the volume may read the model.
_READABLE = 0o444


def toc_of_raw(path: str, size: int, mode: int, mtime: int) -> Toc:
    """The toc of a raw layer that holds the file `path` of `size` bytes.

    `mode` is what the layer's metadata says; shown are its permission bits and reading for all. The file belongs to
    root: a packer's own user means nothing here. `mtime` is in nanoseconds since 1970. The path is checked where trees
    are merged.
    """
    shown = (mode & 0o777) | _READABLE
    return Toc((Entry(path, Kind.FILE, mode=shown, mtime=mtime, size=size, offset=ContentOffset(0)),), size)
