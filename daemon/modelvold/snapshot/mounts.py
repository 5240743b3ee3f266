"""From a snapshot's record to what containerd shall mount. Pure.

A volume stands for the whole chain below it, so lowers end at the first one. Consumers that never write (views, image
volumes) of nothing but a volume get the volume itself, by a bind: it shares the page cache of everybody else's, and
needs no overlay.

Where owners are shifted for a user namespace, containerd's mount code has two traps. Of a bind that is called read-only it maps
nothing, and says nothing: a volume, which is read-only by its own mount, is not called so then. Of an overlay it maps (2.1, 2.2)
not the lowers but the folder above them, without what is mounted there: a volume is named as a lower by `/.` within itself.
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
_VOLUME_OPTIONS = ("rbind", "nosuid", "nodev")


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
    lowers = _lowers(record, layout, volumes, within="/." if shifted else "")
    nearest = record.parents[0].volume if record.parents else None
    is_read = is_view or is_image_volume(record.info.name)
    shift = shifted.options if shifted else ()
    if not lowers:
        return (Mount("bind", str(layout.upper(own)), ("ro" if is_view else "rw", "rbind")),)
    if nearest is not None and is_read:
        read_only = () if shifted else ("ro",)
        return (Mount("bind", str(volumes[nearest]), (*read_only, *_VOLUME_OPTIONS, *shift)),)
    if is_view and len(lowers) == 1:
        if not shifted:
            return (Mount("bind", lowers[0], ("ro", "rbind")),)
        lowers.append(str(layout.upper(own)))  # empty: an overlay takes two, or an upper
    upper = () if is_view else (f"workdir={layout.work(own)}", f"upperdir={layout.upper(own)}")
    options = (*upper, f"lowerdir={':'.join(lowers)}", *layout.overlay_options, *shift)
    return (Mount("overlay", "overlay", options),)


def _lowers(record: Record, layout: Layout, volumes: Mapping[str, Path], within: str) -> list[str]:
    lowers = []
    for layer in record.parents:
        if layer.volume is not None:
            lowers.append(f"{volumes[layer.volume]}{within}")
            break
        lowers.append(str(layout.upper(layer.number)))
    return lowers
