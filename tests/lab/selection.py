"""A containerd that runs on the files of deploy/, as an operator copies them.

Of a file only places are replaced, as text: the daemon's socket and store, /etc/containerd, and in hosts.toml the registry and the
façade. Everything else that a private containerd needs goes where the file itself says that a site's own settings go, into conf.d: what
tests/lab/containerd.py configures, less each key that the file has. Of the file's keys one alone is not followed, `SystemdCgroup`:
the lab has no systemd.

    <root>/config.toml              the deploy file
    <root>/conf.d/lab.toml          the lab's own
    <root>/cni/{net.d,bin}          a network without an interface, for pods that must have one of their own
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab import debian
from tests.lab.containerd import Containerd, Modelvold
from tests.lab.registry import Registry

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NODE_DEFAULT = _DEPLOY / "containerd/node-default.toml"
RUNTIME_CLASS = _DEPLOY / "containerd/runtime-class.toml"
HOSTS = _DEPLOY / "registry/hosts.toml"
#: The Kubernetes objects for nodes with RUNTIME_CLASS.
OBJECTS = _DEPLOY / "kubernetes/runtimeclass.yaml"

#: Keys of a containerd's configuration, from the top.
Keys = tuple[str, ...]
_RUNTIMES = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")
_NETWORK = """\
#!/bin/sh
case "$CNI_COMMAND" in
ADD)
    interface="{\\"name\\":\\"$CNI_IFNAME\\",\\"sandbox\\":\\"$CNI_NETNS\\"}"
    echo "{\\"cniVersion\\":\\"1.0.0\\",\\"interfaces\\":[$interface],\\"ips\\":[{\\"address\\":\\"192.0.2.2/32\\",\\"interface\\":0}]}"
    ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
esac
"""


class Deployed(Containerd):
    """`with Deployed(root, sandbox_image, modelvold, RUNTIME_CLASS) as containerd:`

    `deployed` is the file's tables, its places replaced. `capabilities`: of the proxy plugin, whatever the file says. `runc`: another
    than the lab's own.
    """

    def __init__(
        self,
        root: Path,
        sandbox_image: str,
        modelvold: Modelvold,
        file: Path,
        *,
        capabilities: Sequence[str] | None = None,
        runc: Path | None = None,
    ) -> None:
        super().__init__(root, sandbox_image, modelvold)
        self._runc = runc or self._runc
        self._capabilities = capabilities
        places = {
            "/run/modelvold/modelvold.sock": str(modelvold.socket),
            "/var/lib/modelvold": str(modelvold.store),
            "/etc/containerd": str(root),
        }
        self._text = _replaced(file.read_text(), places)
        self.deployed: dict[str, Any] = tomllib.loads(self._text)

    def hosts(self, registry: Registry, *, facade: bool = True) -> None:
        """The deploy file for this registry, or one that knows no façade."""
        if not facade or self.modelvold is None:
            super().hosts(registry, facade=False)
            return
        places = {"https://registry.example.com": registry.url, "127.0.0.1:7878": self.modelvold.facade}
        home = self.certificates / f"{registry.host.replace(':', '_')}_"
        home.mkdir(parents=True, exist_ok=True)
        (home / "hosts.toml").write_text(_replaced(HOSTS.read_text(), places))

    def start(self) -> None:
        self.write()
        super().start()

    def write(self) -> None:
        """Its files, as a start writes them."""
        for folder in ("conf.d", "cni/net.d", "cni/bin"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        network = {"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "lab"}]}
        (self.root / "cni/net.d/lab.conflist").write_text(json.dumps(network))
        plugin = self.root / "cni/bin/lab"
        plugin.write_text(_NETWORK)
        plugin.chmod(0o755)
        (self.root / "conf.d/lab.toml").write_text(_toml(self._own()))
        (self.root / "config.toml").write_text(self._text)

    def dump(self) -> dict[str, Any]:
        """What containerd makes of all of it (`containerd config dump`)."""
        command = [debian.containerd(), "--config", self.root / "config.toml", "config", "dump"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return tomllib.loads(said.stdout)

    def _configuration(self) -> str:
        return self._text

    def _own(self) -> dict[str, Any]:
        """The lab's own settings; none that the deploy file has."""
        own = tomllib.loads(super()._configuration())
        for key in dict(leaves(self.deployed)):
            _remove(own, key)
        runc = _at(own, (*_RUNTIMES, "runc"))
        runc["options"]["SystemdCgroup"] = False
        _at(own, _RUNTIMES).update({each: {"options": runc["options"]} for each in _at(self.deployed, _RUNTIMES)})
        runtime = own["plugins"]["io.containerd.cri.v1.runtime"]
        runtime["netns_mounts_under_state_dir"] = True
        cni = self.root / "cni"
        runtime["cni"] = {
            "conf_dir": str(cni / "net.d"),
            "bin_dir": str(cni / "bin"),
            "use_internal_loopback": True,
        }
        if self._capabilities is not None:
            plugin = self.deployed["proxy_plugins"]["modelvold"]
            own["proxy_plugins"] = {"modelvold": {**plugin, "capabilities": list(self._capabilities)}}
        return {"version": 3, **own}


def leaves(table: Mapping[str, Any], at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no table, by its keys."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _replaced(text: str, places: Mapping[str, str]) -> str:
    for old, new in places.items():
        assert old in text, f"{old}: the deploy file does not say it"
        text = text.replace(old, new)
    return text


def _at(table: dict[str, Any], keys: Keys) -> dict[str, Any]:
    for key in keys:
        table = table[key]
    return table


def _remove(table: dict[str, Any], key: Keys) -> None:
    for each in key[:-1]:
        table = table.get(each, {})
    table.pop(key[-1], None)


def _toml(table: Mapping[str, Any]) -> str:
    """TOML's strings, booleans, integers and arrays of strings are written as JSON's. A table is there by what is in it, since
    an empty one may replace a full one."""
    text = ""
    for key, value in leaves(table):
        text += f"{'.'.join(json.dumps(each) for each in key)} = {json.dumps(value)}\n"
    return text
