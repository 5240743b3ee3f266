"""What was read of layers' bytes to find their headers, kept until there are segments to put it in: no byte is fetched twice.

One file without a name for all layers of an opening: it is gone with its descriptor. Pieces are written behind each other as they
come; a full disk or the bound ends the keeping, and nothing else.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from modelvold.layer.extent import ContentOffset, Extent
from modelvold.oci.digest import Digest

log = logging.getLogger(__name__)

#: Bytes. Whoever packs more small files than this into one model waits for some of them twice.
MOST = 1 << 30
#: Of one layer: a registry that sends a byte at a time would have us remember each.
_MOST_PIECES = 1 << 16
_PIECE = 1 << 20


class Spool:
    """Pieces of layers, by the layer's digest. Thread-safe. The file is made when there is something to keep."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self._folder = folder
        self._most = most
        self._lock = threading.Lock()  # guards all below
        self._file: BinaryIO | None = None
        self._used = 0
        self._kept: dict[Digest, list[tuple[int, int, int]]] = {}  # start in the content, length, place in the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def keep(self, layer: Digest, start: ContentOffset, piece: memoryview) -> None:
        """Best effort: what cannot be kept will be fetched again."""
        try:
            with self._lock:
                pieces = self._kept.setdefault(layer, [])
                if self._used + len(piece) > self._most or len(pieces) >= _MOST_PIECES:
                    return
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 — ours to close
                file, place = self._file, self._used
                self._used += len(piece)
            if os.pwrite(file.fileno(), piece, place) == len(piece):
                with self._lock:
                    pieces.append((start, len(piece), place))
        except OSError as error:
            log.info("spool layer=%s dropped=%d reason=%r", layer, len(piece), error.strerror)

    def pieces(self, layer: Digest, wanted: Extent) -> Iterator[memoryview]:
        """The layer's bytes from the start of `wanted` on, as far as they were kept without a gap."""
        with self._lock:
            kept = sorted(self._kept.get(layer, ()))
            file = self._file
        at: int = wanted.start
        while file and at < wanted.end:
            number = bisect_right(kept, (at, self._most, 0)) - 1
            if number < 0:
                return
            start, length, place = kept[number]
            size = min(_PIECE, start + length - at, wanted.end - at)
            if size <= 0:
                return
            piece = os.pread(file.fileno(), size, place + at - start)
            yield memoryview(piece)
            at += len(piece)
