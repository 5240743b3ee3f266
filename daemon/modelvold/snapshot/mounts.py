"""From a snapshot's record to what containerd shall mount. Pure.

A volume stands for the whole chain below it, so lowers end at the first one. Consumers that never write (views, image
volumes) of nothing but a volume get the volume itself, by a bind: it shares the page cache of everybody else's, and
needs no overlay.

Where owners are shifted for a user namespace there is always an overlay, if there is anything below: containerd maps an
overlay's lowers, and of a bind that is read-only it maps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvold.snapshot.mapping import IdMap
from modelvold.snapshot.record import Kind, Record

#: A folder of the key under which the CRI plugin prepares an image volume: `…/image-volumes/<sandbox>/<digest>`.
IMAGE_VOLUMES = "image-volumes"

# A runtime's own bind remount drops what is not said here (nosuid and nodev of our mount do not survive it).
_READ_ONLY = ("ro", "nosuid", "nodev")
_VOLUME_OPTIONS = ("ro", "rbind", "nosuid", "nodev")


@dataclass(frozen=True, slots=True)
class Mount:
    """`containerd.types.Mount`; `target` is empty for the root of what is mounted."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where snapshots' folders lie, and what every overlay mount is given.

    `overlay_options`: `index=off` where the kernel knows it, since the index refuses a lower folder that is used by
    two mounts.
    """

    snapshots: Path
    overlay_options: tuple[str, ...] = ()

    def upper(self, number: int) -> Path:
        return self.snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        return self.snapshots / str(number) / "work"


def is_image_volume(key: str) -> bool:
    return IMAGE_VOLUMES in key.split("/")


def mounts(
    record: Record, layout: Layout, volumes: Mapping[str, Path], shifted: IdMap | None = None
) -> tuple[Mount, ...]:
    """How to mount an active snapshot or a view. `volumes` says where the volume of its chain is mounted, `shifted` by
    what the owners of all below are to be shifted."""
    own = record.layer.number
    is_view = record.info.kind is Kind.VIEW
    lowers = _lowers(record, layout, volumes)
    nearest = record.parents[0].volume if record.parents else None
    is_read = is_view or (nearest is not None and is_image_volume(record.info.name))
    if not lowers:
        return (Mount("bind", str(layout.upper(own)), ("ro" if is_view else "rw", "rbind")),)
    if shifted is None and nearest is not None and is_read:
        return (Mount("bind", str(volumes[nearest]), _VOLUME_OPTIONS),)
    if shifted is None and is_view and len(lowers) == 1:
        return (Mount("bind", lowers[0], ("ro", "rbind")),)
    if is_view and len(lowers) == 1:
        lowers.append(str(layout.upper(own)))  # empty: an overlay takes two, or an upper
    upper = () if is_view else (f"workdir={layout.work(own)}", f"upperdir={layout.upper(own)}")
    below = f"lowerdir={':'.join(lowers)}"
    read_only = _READ_ONLY if shifted is not None and nearest is not None and is_read else ()
    options = (*read_only, *upper, below, *layout.overlay_options, *(shifted.options if shifted else ()))
    return (Mount("overlay", "overlay", options),)


def _lowers(record: Record, layout: Layout, volumes: Mapping[str, Path]) -> list[str]:
    lowers = []
    for layer in record.parents:
        if layer.volume is not None:
            lowers.append(str(volumes[layer.volume]))
            break
        lowers.append(str(layout.upper(layer.number)))
    return lowers
