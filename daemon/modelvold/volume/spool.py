"""What was read of layers' bytes to find their headers, kept until there are segments to put it in: no byte is fetched twice.

One file without a name for all layers of an opening: it is gone with its descriptor. Pieces are written behind each other as they
come; a full disk or the bound ends the keeping, and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from modelvold.layer.extent import ContentOffset, Extent
from modelvold.oci.digest import Digest

log = logging.getLogger(__name__)

#: Bytes. Whoever packs more small files than this into one model waits for some of them twice.
MOST = 1 << 30
_PIECE = 1 << 20


class Spool:
    """Pieces of layers, by the layer's digest. Thread-safe."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        """Raises OSError."""
        self._file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._most = most
        self._lock = threading.Lock()  # guards the two below
        self._used = 0
        self._kept: dict[Digest, list[tuple[int, int, int]]] = {}  # start in the content, length, place in the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def keep(self, layer: Digest, start: ContentOffset, piece: memoryview) -> None:
        """Best effort: what cannot be kept will be fetched again."""
        with self._lock:
            place, self._used = self._used, self._used + len(piece)
        if place + len(piece) > self._most:
            return
        try:
            if os.pwrite(self._file, piece, place) != len(piece):
                return
        except OSError as error:
            log.info("spool layer=%s dropped=%d reason=%r", layer, len(piece), error.strerror)
            return
        with self._lock:
            self._kept.setdefault(layer, []).append((start, len(piece), place))

    def pieces(self, layer: Digest, wanted: Extent) -> Iterator[memoryview]:
        """The layer's bytes from the start of `wanted` on, as far as they were kept without a gap."""
        with self._lock:
            kept = sorted(self._kept.get(layer, ()))
        at: int = wanted.start
        while at < wanted.end:
            number = bisect_right(kept, (at, self._most, 0)) - 1
            if number < 0:
                return
            start, length, place = kept[number]
            size = min(_PIECE, start + length - at, wanted.end - at)
            if size <= 0:
                return
            piece = os.pread(self._file, size, place + at - start)
            yield memoryview(piece)
            at += len(piece)
