"""How far the kernel reads ahead in a volume.

While bytes may be missing, no further than it does by itself (128 KiB): a read waits for what is read ahead of it, too. Once all is
here, 1 MiB: pages come in larger pieces then, and mapped files are read as fast as those of the file system below.

The kernel has the setting in a folder of its own for each mount, and does not say for which: it is the one that appears while the
mount is made. Where another appears with it (somebody else mounted an EROFS), neither is taken for ours. Where it cannot be set,
it stays as it is; nothing else depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

_DEVICES = Path("/sys/class/bdi")
_OURS = "erofs-"
#: KiB.
_NARROW, _WIDE = 128, 1024


class Readahead:
    """Of the mounts that were made within `made`, in this daemon's life. One mount is made at a time."""

    def __init__(self) -> None:
        self._devices: dict[str, str] = {}  # by volume
        self._wide: set[str] = set()

    @contextmanager
    def made(self, volume: str) -> Iterator[None]:
        """The mount of `volume` is made in the block."""
        before = _devices()
        self.forget(volume)
        yield
        new = _devices() - before
        if len(new) == 1:
            self._devices[volume] = new.pop()

    def forget(self, volume: str) -> None:
        self._devices.pop(volume, None)
        self._wide.discard(volume)

    def set(self, volume: str, *, is_complete: bool) -> None:
        """May be called at any time, and as often as one likes."""
        device = self._devices.get(volume)
        if device is None or (volume in self._wide) == is_complete:
            return
        (self._wide.add if is_complete else self._wide.discard)(volume)
        size = _WIDE if is_complete else _NARROW
        try:
            (_DEVICES / device / "read_ahead_kb").write_text(str(size))
        except OSError as error:
            log.info("keep readahead volume=%s reason=%r", volume, error.strerror)
        else:
            log.debug("set readahead volume=%s device=%s kib=%d", volume, device, size)


def _devices() -> set[str]:
    try:
        return {path.name for path in _DEVICES.iterdir() if path.name.startswith(_OURS)}
    except OSError:
        return set()
