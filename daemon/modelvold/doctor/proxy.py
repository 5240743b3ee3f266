"""The proxy plugin by which containerd knows us. Pure."""

from __future__ import annotations

from modelvold.doctor.line import Line
from modelvold.doctor.table import GROUP, NAME, Ours, Table, at, quoted, text, texts

ANNOTATIONS = "enable_remote_snapshot_annotations"
#: That mounts shift owners for user namespaces, by options.
_REMAP = "remap-ids"


def plugin_of(table: Table, ours: Ours) -> tuple[str, Table]:
    """The snapshotter that is us: the one of our name, else one that has our socket."""
    plugins = {name: at(table, "proxy_plugins", name) for name in at(table, "proxy_plugins")}
    by_socket = (name for name, plugin in plugins.items() if _socket(plugin) == str(ours.socket))
    name = NAME if NAME in plugins else next(by_socket, NAME)
    return name, plugins.get(name, {})


def check(name: str, plugin: Table, ours: Ours) -> Line:
    """`plugin` is empty where there is none."""
    what = f"proxy_plugins.{name}"
    if not plugin:
        return GROUP.bad(what, "not there: containerd does not know of modelvold", ours.mend(snippet(ours)))
    if plugin.get("type") not in {"snapshot", "io.containerd.snapshotter.v1"}:
        seen = f"its type is {quoted(plugin.get('type', ''))}, so it is no snapshotter"
        return GROUP.bad(what, seen, ours.mend(f'[{what}]\n  type = "snapshot"'))
    if _socket(plugin) != str(ours.socket):
        seen = f"its address is {quoted(_socket(plugin))}, the daemon's socket is {ours.socket}"
        return GROUP.bad(what, seen, ours.mend(f'[{what}]\n  address = "{ours.socket}"'))
    if "rebase" in texts(plugin, "capabilities"):
        seen = 'the capability "rebase": containerd then names no parents, and lazy layers are not found again'
        return GROUP.bad(what, seen, ours.mend(f'[{what}]\n  capabilities = ["{_REMAP}"]'))
    if _REMAP not in texts(plugin, "capabilities"):
        seen = f'without the capability "{_REMAP}": containerd copies an image for each pod with a user namespace'
        return GROUP.warn(what, seen, ours.mend(f'[{what}]\n  capabilities = ["{_REMAP}"]'))
    return GROUP.ok(what, f"a snapshotter at {ours.socket}")


def exports(name: str, plugin: Table, ours: Ours) -> Line:
    """Its root, at which the kubelet looks for the free space of images."""
    what, root = "exports: root", text(at(plugin, "exports"), "root")
    if root == str(ours.store):
        return GROUP.ok(what, root)
    seen = f"{root or 'not set'}, and the store is {ours.store}: the kubelet looks for free space in the wrong place"
    return GROUP.warn(what, seen, ours.mend(f'[proxy_plugins.{name}.exports]\n  root = "{ours.store}"'))


def snippet(ours: Ours) -> str:
    return f"""[proxy_plugins.{NAME}]
  type = "snapshot"
  address = "{ours.socket}"
  capabilities = ["{_REMAP}"]
  [proxy_plugins.{NAME}.exports]
    root = "{ours.store}"
    {ANNOTATIONS} = "true\""""


def _socket(plugin: Table) -> str:
    return text(plugin, "address").removeprefix("unix://")
