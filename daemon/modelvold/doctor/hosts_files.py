"""The `hosts.toml` files: which registries lead to the façade, and which file containerd would not take. Pure.

containerd skips a file it cannot read, with one line in its log, and asks the registry itself: then a model is mounted as an
empty folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelvold.doctor.line import Line, copied
from modelvold.doctor.table import GROUP, Version
from modelvold.errors import Failure
from modelvold.registry import address as addresses
from modelvold.registry import hosts_toml
from modelvold.registry.hosts_toml import PULL, RESOLVE, Host

WHAT = "hosts.toml"
_WITH_PORT = re.compile(r"(.+)_([0-9]{1,5})_")
_DEFAULT = "_default"
_MOST_NAMED = 4
_KNOWS_REFERRERS = (2, 2)
#: Any name at all: what `_default` says does not depend on it.
_SOME_HOST = "registry.example.com"


@dataclass(frozen=True, slots=True)
class HostsFile:
    """`file` is <hosts_dir>/<folder>/hosts.toml; `document` its bytes, or `trouble` why there are none."""

    file: Path
    document: bytes = b""
    trouble: str = ""

    @property
    def registry(self) -> str:
        """As a reference names it."""
        folder = self.file.parent.name
        with_port = _WITH_PORT.fullmatch(folder)
        return f"{with_port[1]}:{with_port[2]}" if with_port else folder


def check(hosts_dir: Path, files: Sequence[HostsFile], facade: str, version: Version | None) -> Iterator[Line]:
    """`facade` is `host:port`, empty where it is off."""
    if not facade:
        seen = "not looked at: the façade is off, so no pod can mount a model"
        yield GROUP.warn(WHAT, seen, "take `[facade] listen` out of modelvold's settings, then restart it")
        return
    leading, others = [], []
    for file in filter(_is_read, files):
        lines = list(_file(file, facade, version))
        yield from lines
        if _leads(file, facade):
            leading.append(file.registry)
        elif not lines:
            others.append(file.registry)
    if leading:
        beside = f"; not the façade: {_named(others)}" if others else ""
        yield GROUP.ok(WHAT, f"lead to the façade: {_named(leading)}{beside}")
    else:
        seen = f"no registry in {hosts_dir} leads to the façade ({facade})"
        mend = snippet(hosts_dir / _SOME_HOST / "hosts.toml", f"https://{_SOME_HOST}", facade)
        yield GROUP.bad(WHAT, seen, mend)


def snippet(file: Path, server: str, facade: str) -> str:
    """The mend that leads a registry, whose own URL is `server`, to the façade."""
    return f"for each registry that holds models, as {file}:\n" + copied(
        f'server = "{server}"\n\n{_host_table(facade)}'
    )


def _file(file: HostsFile, facade: str, version: Version | None) -> Iterator[Line]:
    """What is wrong with it."""
    what = f"{WHAT} of {file.registry}"
    if file.trouble:
        yield GROUP.bad(what, f"{file.file}: {file.trouble}", "make it readable to root")
        return
    try:
        hosts = _hosts(file)
    except Failure as failure:
        yield GROUP.bad(what, failure.message, "mend the file: containerd skips it, and asks the registry itself")
        return
    capabilities = _capabilities(file.document)
    if any(isinstance(each, str) for each in capabilities):
        seen = f"{file.file}: capabilities that are no list, for which containerd skips the whole file"
        yield GROUP.bad(what, seen, 'write\n    capabilities = ["pull", "resolve"]')
    elif any("referrers" in each for each in capabilities) and (version is None or version < _KNOWS_REFERRERS):
        said = GROUP.warn if version is None else GROUP.bad
        seen = f'{file.file}: the capability "referrers", for which containerd before 2.2 skips the whole file'
        yield said(what, seen, 'leave it out:\n    capabilities = ["pull", "resolve"]')
    yield from _order(what, file, hosts, facade)


def _order(what: str, file: HostsFile, hosts: Sequence[Host], facade: str) -> Iterator[Line]:
    ours = [host for host in hosts if _is_facade(host, facade)]
    if not ours:
        return
    mend = f"in {file.file}, before other hosts:\n{copied(_host_table(facade))}"
    if all(host.scheme == "https" for host in ours):
        yield GROUP.bad(what, f"{file.file}: asks the façade by https, which it does not speak", mend)
    elif not ours[0].capabilities >= {PULL, RESOLVE}:
        lacking = " and ".join(sorted({PULL, RESOLVE} - ours[0].capabilities))
        yield GROUP.bad(what, f"{file.file}: the façade is not asked to {lacking}, so models do not come by it", mend)
    elif earlier := [host for host in hosts[: hosts.index(ours[0])] if RESOLVE in host.capabilities]:
        seen = f"{file.file}: {earlier[0]} is asked before the façade, and a model found there is mounted as an empty folder"
        yield GROUP.warn(what, seen, mend)


def _is_read(file: HostsFile) -> bool:
    """Whether any registry can have this folder's name: a copy aside is nobody's business."""
    try:
        addresses.split(file.registry)
    except Failure:
        return file.registry == _DEFAULT or bool(file.trouble)
    return True


def _leads(file: HostsFile, facade: str) -> bool:
    try:
        return any(_is_facade(host, facade) for host in _hosts(file))
    except Failure:
        return False


def _hosts(file: HostsFile) -> tuple[Host, ...]:
    """Raises Failure."""
    if not file.document.strip():
        return ()
    registry = _SOME_HOST if file.registry == _DEFAULT else file.registry
    try:
        return hosts_toml.parse(file.document, file.file, registry)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{file.file}: {error}") from None


def _is_facade(host: Host, facade: str) -> bool:
    return addresses.is_same_listener(host.address, facade, host.scheme)


def _capabilities(document: bytes) -> list[Any]:
    """All that stand in a file that could be parsed."""
    root = tomllib.loads(document.decode())
    return [table["capabilities"] for table in (root, *root.get("host", {}).values()) if "capabilities" in table]


def _host_table(facade: str) -> str:
    return f'[host."http://{facade}"]\n  capabilities = ["pull", "resolve"]'


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(sorted(names)[:_MOST_NAMED])}{more}"
