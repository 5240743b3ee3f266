"""How pods get at us: which way CRI pulls, into which snapshotter, from which one it mounts, and whom it asks first. Pure."""

from __future__ import annotations

from pathlib import Path

from modelvold.doctor.line import Line, copied
from modelvold.doctor.proxy import ANNOTATIONS
from modelvold.doctor.table import GROUP, IMAGES, NAME, RUNTIME, TRANSFER, Ours, Table, Version, at, quoted, text

#: From here on a runtime's snapshotter is used for its pulls too.
_RUNTIME_PULLS = (2, 3)
#: What stands in a file for the node's own snapshotter.
SNAPSHOTTER = f"[plugins.'{IMAGES}']\n  snapshotter = \"{NAME}\""


def snapshot_annotations(name: str, plugin: Table, images: Table, because: str, ours: Ours) -> Line:
    """Without them containerd does not say which image a layer belongs to, and no layer is believed to be a model."""
    what, effect = "snapshot annotations", "so no layer is known to be a model's"
    if because:
        if images.get("disable_snapshot_annotations", True) is False:
            return GROUP.ok(what, f"on; pulls go the older way, because of {because}")
        seen = f"off, {effect}: pulls go the older way, because of {because}"
        return GROUP.bad(what, seen, ours.mend(f"[plugins.'{IMAGES}']\n  disable_snapshot_annotations = false"))
    said = at(plugin, "exports").get(ANNOTATIONS)
    if said == "true":
        return GROUP.ok(what, "on, by exports")
    seen = f"off, {effect}: exports {'lacks' if said is None else f'has {quoted(said)} for'} {ANNOTATIONS}"
    return GROUP.bad(what, seen, ours.mend(f'[proxy_plugins.{name}.exports]\n  {ANNOTATIONS} = "true"'))


def unpack(name: str, table: Table, images: Table, ours: Ours) -> Line:
    """Any list replaces the default one, which is overlayfs alone."""
    what, listed = "unpack_config", at(table, "plugins", TRANSFER).get("unpack_config")
    names = [text(each, "snapshotter") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    is_default = not names
    names = names or ["overlayfs"]
    seen = ", ".join(dict.fromkeys(names))
    if name not in names:
        beside = f"{entry('overlayfs')}\n" if is_default or "overlayfs" not in names else ""
        return GROUP.bad(what, f"{seen}, and not {name}: every pull into it fails", ours.mend(beside + entry(name)))
    if "overlayfs" not in names:
        say = GROUP.bad if images.get("snapshotter", "overlayfs") == "overlayfs" else GROUP.warn
        return say(what, f"{seen}, and not overlayfs: pulls into that fail", ours.mend(entry("overlayfs")))
    return GROUP.ok(what, seen)


def snapshotter(name: str, table: Table, images: Table, ours: Ours, version: Version | None) -> Line:
    """For pulls it is the images plugin's, or a runtime platform's; for image volumes and containers the runtime's, if it has one."""
    what, node = "CRI snapshotter", text(images, "snapshotter") or "overlayfs"
    containerd = at(table, "plugins", RUNTIME, "containerd")
    runtimes = {each: text(at(containerd, "runtimes", each), "snapshotter") for each in at(containerd, "runtimes")}
    if node == name:
        usual = text(containerd, "default_runtime_name") or "runc"
        other = runtimes.get(usual, "")
        if other not in {"", name}:
            seen = f"{name}, but the runtime {usual} mounts from {other}: its image volumes would be empty"
            return GROUP.bad(what, seen, ours.mend(_runtime(usual, name)))
        return GROUP.ok(what, f"{name}, for all pods")
    pulls = {
        each
        for each in at(images, "runtime_platforms")
        if text(at(images, "runtime_platforms", each), "snapshotter") == name
    }
    mounts = {each for each, snapshotter in runtimes.items() if snapshotter == name}
    if version and version >= _RUNTIME_PULLS:
        pulls |= mounts
    if both := sorted(pulls & mounts):
        return GROUP.ok(
            what,
            f"{name} for pods of the runtime handler {', '.join(both)}, which need the annotation"
            f" io.containerd.cri.runtime-handler too; {node} for all others",
        )
    if half := sorted(pulls | mounts):
        seen = f"{half[0]} {'pulls into' if pulls else 'mounts from'} {name}, but does not do both"
        return GROUP.bad(what, seen, ours.mend(f"{_runtime(half[0], name)}\n{_platform(half[0], name)}"))
    return GROUP.bad(
        what, f"{node}, and modelvold for no pod: models are mounted as empty folders", ours.mend(SNAPSHOTTER)
    )


def config_path(images: Table, because: str, ours: Ours) -> Line:
    """Exactly one folder: the transfer service takes a list of them for one name."""
    what, named = "config_path", paths(images)
    mend = ours.mend(path_snippet(ours))
    if not named:
        return GROUP.bad(what, "not set: containerd reads no hosts.toml, so it never asks the façade for models", mend)
    if len(named) > 1:
        seen = f"{len(named)} folders, {':'.join(named)}: "
        if because:
            return GROUP.warn(what, f"{seen}the façade reads one, {ours.hosts_dir}", mend)
        return GROUP.bad(what, f"{seen}containerd takes that for one name, and reads none", mend)
    if at(images, "registry", "mirrors"):
        seen = f"{named[0]}, beside registry.mirrors: containerd's CRI does not start with both"
        return GROUP.bad(what, seen, f"take `registry.mirrors` out of {ours.file}: hosts.toml files say the same")
    if Path(named[0]) != ours.hosts_dir:
        seen = f"{named[0]}, but the façade reads {ours.hosts_dir}, and serves only registries named there"
        hosts_dir = copied(f'[registry]\nhosts_dir = "{named[0]}"')
        return GROUP.bad(what, seen, f"in modelvold's settings, then restart it:\n{hosts_dir}")
    return GROUP.ok(what, named[0])


def local_pull(images: Table) -> str:
    """Why CRI pulls with containerd's client and not with its transfer service; empty where it does not
    (`CheckLocalImagePullConfigs`)."""
    registry = at(images, "registry")
    reasons = {
        "use_local_image_pull": images.get("use_local_image_pull") is True,
        "disable_snapshot_annotations": images.get("disable_snapshot_annotations", True) is False,
        "discard_unpacked_layers": images.get("discard_unpacked_layers") is True,
        **{f"registry.{key}": bool(at(registry, key)) for key in ("mirrors", "configs", "auths")},
        "max_concurrent_downloads": images.get("max_concurrent_downloads", 3) != 3,
        "image_pull_with_sync_fs": images.get("image_pull_with_sync_fs") is True,
    }
    return next((key for key, is_so in reasons.items() if is_so), "")


def paths(images: Table) -> list[str]:
    """The folders of hosts.toml files."""
    return [path for path in text(at(images, "registry"), "config_path").split(":") if path]


def entry(snapshotter: str) -> str:
    """What stands in a file for one of `unpack_config`."""
    lines = ('platform = "linux"', f'snapshotter = "{snapshotter}"', 'differ = "walking"')
    return f"[[plugins.'{TRANSFER}'.unpack_config]]\n" + "\n".join(f"  {line}" for line in lines)


def path_snippet(ours: Ours) -> str:
    """What stands in a file for `config_path`."""
    return f"[plugins.'{IMAGES}'.registry]\n  config_path = \"{ours.hosts_dir}\""


def _runtime(handler: str, name: str) -> str:
    return f"[plugins.'{RUNTIME}'.containerd.runtimes.{handler}]\n  snapshotter = \"{name}\""


def _platform(handler: str, name: str) -> str:
    return f"[plugins.'{IMAGES}'.runtime_platforms.{handler}]\n  snapshotter = \"{name}\""
