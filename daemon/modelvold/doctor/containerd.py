"""containerd's configuration: whether it leads models to us. Pure: a parsed table in, lines out.

The table is what `containerd config dump` prints, version 3: defaults filled in, imports merged. Where a file had to do instead, a
key that is not there has containerd's default, which stands here beside it. How containerd 2.1 to 2.4 use each key: its
`internal/cri/config/config.go`, `plugins/transfer/plugin.go`, `core/transfer/local/pull.go`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelvold.doctor import cri, proxy
from modelvold.doctor.line import Line
from modelvold.doctor.table import GROUP, IMAGES, NAME, RUNTIME, TRANSFER, Ours, Table, Version, at, texts


def check(table: Table, ours: Ours, version: Version | None) -> Iterator[Line]:
    """`version` of containerd; None where it is not known."""
    name, plugin = proxy.plugin_of(table, ours)
    images = at(table, "plugins", IMAGES)
    yield from _switched_off(table, ours)
    yield proxy.check(name, plugin, ours)
    if plugin:
        yield proxy.exports(name, plugin, ours)
    because = cri.local_pull(images)
    if plugin or because:
        yield cri.snapshot_annotations(name, plugin, images, because, ours)
    if not because:
        yield cri.unpack(name, table, images, ours)
    yield cri.snapshotter(name, table, images, ours, version)
    yield cri.config_path(images, because, ours)


def config_path(table: Table) -> Path | None:
    """The one folder of hosts.toml files that containerd reads; None where there is none, or more than one."""
    paths = cri.paths(at(table, "plugins", IMAGES))
    return Path(paths[0]) if len(paths) == 1 else None


def whole(ours: Ours) -> str:
    """The mend for a containerd that knows nothing of us."""
    unpack = f"{cri.entry('overlayfs')}\n{cri.entry(NAME)}"
    parts = ("version = 3", proxy.snippet(ours), unpack, cri.SNAPSHOTTER, cri.path_snippet(ours))
    return ours.mend("\n\n".join(parts))


def _switched_off(table: Table, ours: Ours) -> Iterator[Line]:
    needed = ("io.containerd.grpc.v1.cri", IMAGES, RUNTIME, TRANSFER)
    off = [plugin for plugin in texts(table, "disabled_plugins") if plugin in needed]
    if off:
        yield GROUP.bad(
            "plugins",
            f"switched off: {', '.join(off)}; without them Kubernetes cannot use this containerd",
            f"take them out of `disabled_plugins` in {ours.file}, then `systemctl restart containerd`",
        )
