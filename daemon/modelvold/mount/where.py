"""Where in a volume's files the bytes of segments lie. Pure."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence

from modelvold.layer.extent import Extent
from modelvold.mount.backend import Volume
from modelvold.mount.pieces import Piece
from modelvold.store.content import content_of
from modelvold.store.segment import Segment
from modelvold.volume.tree import Tree


def pieces_of(tree: Tree, volume: Volume, segments: Sequence[Segment]) -> Iterator[Piece]:
    """What of a volume's files lies in `segments`."""
    of_content: dict[int, list[Extent]] = defaultdict(list)
    for segment in segments:
        of_content[content_of(segment).id].append(segment.extent)
    joined = {number: _joined(extents) for number, extents in of_content.items()}
    for path, file in tree.files():
        extents = joined.get(volume.contents[file.layer].id, [])
        end = file.offset + file.size
        for extent in extents[max(0, bisect_right(extents, file.offset, key=lambda each: each.start) - 1) :]:
            if extent.start >= end:
                break
            first, last = max(extent.start, file.offset), min(extent.end, end)
            if first < last:
                yield Piece(os.fsdecode(path), first - file.offset, last - file.offset)


def _joined(extents: Sequence[Extent]) -> list[Extent]:
    """Sorted, neighbours as one."""
    found: list[Extent] = []
    for extent in sorted(extents):
        if found and found[-1].end >= extent.start:
            found[-1] = Extent(found[-1].start, max(found[-1].end, extent.end))
        else:
            found.append(extent)
    return found
