"""The volume that the probe tries things with: one file of five segments, in a scratch folder, read by child processes.

Bytes are their segment's number plus one, so that a zero or a neighbour's byte is seen. The gate's process must never
read a volume; each look is a process of its own, and each read a child of that, since a mapped one may die of SIGBUS.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.layer.raw import toc_of_raw
from modelvold.mount.backend import Volume
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import ContentRow
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.volume.erofs import write_image
from modelvold.volume.tree import merge

_READER = Path(__file__).with_name("probe_reader.py")
_PATIENCE = 20.0
_SEGMENTS = 5
_SHORT = 300 * 1024

#: (how, offset, length), `how` being "read" or "map".
Look = tuple[str, int, int]

#: Across the ends of two full segments, whose blocks carry equal numbers.
ACROSS: Look = ("read", CHUNK - 4096, 8192)
#: In the short segment, in front of its end, and behind it where no read-ahead has been.
BEFORE: Look = ("read", 2 * CHUNK, 4096)
BEYOND: Look = ("read", 2 * CHUNK + _SHORT + (256 << 10), 4096)
#: In the segment that stays empty, and in the one that is filled when asked for.
EMPTY: Look = ("read", 3 * CHUNK, 4096)
WAITING: Look = ("read", 4 * CHUNK, 4096)


def mapped(look: Look) -> Look:
    return ("map", *look[1:])


class Trial:
    """On disk from the start: two full segments, a short one, two empty ones, and their image."""

    def __init__(self, scratch: Path) -> None:
        extents = tuple(Extent(ContentOffset(n * CHUNK), ContentOffset((n + 1) * CHUNK)) for n in range(_SEGMENTS))
        row = ContentRow(0, Digest.of(b"probe"), Reading.RAW, "probe", _SEGMENTS * CHUNK, "unverified", "")
        self.content = Content(scratch, row, extents)
        image = write_image(merge([toc_of_raw("probe", _SEGMENTS * CHUNK, 0o444, 0)]), [extents])
        path = scratch / "probe.erofs"
        path.write_bytes(image.bytes)
        self.volume = Volume("probe", path, image.uuid, (self.content,))
        self.content.folder().mkdir(parents=True)
        for segment in self.content.segments:
            segment.path.touch(0o600)
            segment.inode = segment.path.stat().st_ino
        first, second, self.short, self.empty, self.waiting = self.content.segments
        fill(first, first.length)
        fill(second, second.length)
        fill(self.short, _SHORT)


def fill(segment: Segment, length: int) -> None:
    """Makes it `length` bytes long."""
    with segment.writer() as writer:
        writer.append(memoryview(bytes([segment.number + 1]) * (length - segment.present)))


def look(mounted: Path, looks: Sequence[Look], expected: Sequence[str]) -> str:
    """Empty where every look saw what was expected, else what was seen."""
    reader = start(mounted, looks)
    try:
        said, _ = reader.communicate(timeout=_PATIENCE)
        seen = json.loads(said)
    except (subprocess.TimeoutExpired, ValueError) as error:
        kill(reader)
        return f"the reader failed: {error}"
    return "" if seen == list(expected) else f"expected {', '.join(expected)}, saw {', '.join(seen)}"


def start(mounted: Path, looks: Sequence[Look]) -> subprocess.Popen[str]:
    """A reader of the file `probe` in the folder `mounted`, the leader of a process group of its own."""
    command = [sys.executable, "-I", "-S", str(_READER), str(mounted / "probe"), json.dumps(looks)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def kill(reader: subprocess.Popen[str]) -> None:
    """It and its children, which wait in the kernel."""
    os.killpg(reader.pid, signal.SIGKILL)
    reader.communicate()
