"""What a layer's annotation says of a tar, against what the tar holds.

A tar's names are those in it; the annotation beside it is believed in one case only, and must not contradict it where it
speaks of one file:

- AIKit packs each weight file under its bare name and gives the path in the annotation alone.
- The annotation of a weight layer is the path of its file, or of a folder that it lies in. Of other roles it may be a
  category ("config"), which says nothing.
- A layer of an image may delete what is below it, by whiteouts (OCI image-spec, `layer.md`). A model's layers are
  disjoint, so a whiteout in one is a mistake.
"""

from __future__ import annotations

from dataclasses import replace

from modelvold.errors import Malformed
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.oci.media_type import Role
from modelvold.oci.modelpack import ModelLayer

_WHITEOUT = ".wh."
_REPACK = "ask the producer to repack the model"


def named(toc: Toc, layer: ModelLayer) -> Toc:
    """`toc`, read from the tar that is `layer`, with its entries where the layer wants them.

    Raises Malformed for whiteouts, and where the annotation and a weight layer's only file have two paths or two sizes.
    """
    if layer.role is Role.FILESYSTEM:
        _refuse_whiteouts(toc, layer)
    if layer.role is not Role.WEIGHT or not layer.path:
        return toc
    if _is_bare(toc, layer.path):
        toc = replace(toc, entries=(replace(toc.entries[0], path=layer.path),))
    files = [entry for entry in toc.entries if entry.kind in {Kind.FILE, Kind.HARDLINK}]
    if len(files) == 1:
        _compare(files[0], toc, layer)
    return toc


def _is_bare(toc: Toc, path: str) -> bool:
    """Whether a file without its folder is all there is. (`path` without a folder is then its path already.)"""
    only = toc.entries[0] if len(toc.entries) == 1 else None
    return only is not None and only.kind is Kind.FILE and only.path == path.rpartition("/")[2]


def _compare(file: Entry, toc: Toc, layer: ModelLayer) -> None:
    if file.path != layer.path:
        # A folder's size is not its file's.
        if not file.path.startswith(f"{layer.path}/"):
            raise _contradiction(layer, f"its only file is {file.path[:300]!r}")
    elif layer.said_size not in {None, file.size, toc.length, layer.descriptor.size}:
        raise _contradiction(layer, f"of {layer.said_size} bytes, its file {file.path[:300]!r} has {file.size}")


def _refuse_whiteouts(toc: Toc, layer: ModelLayer) -> None:
    for entry in toc.entries:
        if entry.path.rpartition("/")[2].startswith(_WHITEOUT):
            raise Malformed(
                f"layer {layer.descriptor.digest.short}, {entry.path[:300]!r}: a whiteout; the layers of a model delete"
                " nothing",
                _REPACK,
            )


def _contradiction(layer: ModelLayer, found: str) -> Malformed:
    what = f"layer {layer.descriptor.digest.short}"
    return Malformed(f"{what}: by its annotation the tar holds {layer.path[:300]!r}, {found}", _REPACK)
