"""Settings files, flags and environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

import pytest
from modelvold import config
from modelvold.config import Endpoint
from modelvold.errors import InvalidInput
from modelvold.rpc import places
from modelvold.store.amount import Amount
from modelvold.store.showing import Verify

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def _load(tmp_path: Path, text: str) -> config.Config:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return config.load(file, environment={})


def test_defaults(tmp_path: Path) -> None:
    found = _load(tmp_path, "")
    assert (found.store.root, found.run) == (Path("/var/lib/modelvold"), Path("/run/modelvold"))
    assert found.address == Path("/run/modelvold/modelvold.sock")
    assert (found.fetch.connections, found.fetch.per_host, found.fetch.bandwidth) == (32, 16, None)
    assert (found.fetch.prefetch, found.fetch.deadline) == (True, 60.0)
    assert found.registry.hosts_dir == Path("/etc/containerd/certs.d")
    assert found.docker_config == Path("/root/.docker/config.json")
    assert (found.mount.backend, found.log.level, found.log.format) == ("auto", "info", "text")
    assert (str(found.facade.listen), str(found.metrics.listen)) == ("127.0.0.1:7878", "127.0.0.1:7879")
    assert (found.store.quota, found.store.reserve) == (Amount(), Amount(share=0.16))
    assert (found.store.keep, found.store.verify, found.store.scrub) == (None, "serve", 30 * 86400.0)


def test_every_key(tmp_path: Path) -> None:
    found = _load(
        tmp_path,
        """
        [store]
        root = "/a"
        quota = "200 GiB"
        reserve = "5%"
        keep = "0s"
        verify = "layer"
        scrub = "12h"
        [fetch]
        connections = 64
        per_host = 1
        bandwidth = "62.5 MB"
        prefetch = false
        deadline = 1
        [registry]
        hosts_dir = "/b"
        docker_config = "/c/config.json"
        [mount]
        backend = "lazy"
        selinux = "u:r:t:s0-s1:c0,c5"
        [facade]
        listen = "[::1]:1"
        [metrics]
        listen = "0.0.0.0:65535"
        [log]
        level = "debug"
        format = "json"
        """,
    )
    assert (found.store.root, found.registry.hosts_dir) == (Path("/a"), Path("/b"))
    assert (found.store.quota, found.store.reserve) == (Amount(bytes=200 << 30), Amount(share=0.05))
    assert (found.store.keep, found.store.verify, found.store.scrub) == (0.0, "layer", 43200.0)
    assert found.docker_config == Path("/c/config.json")
    assert (found.fetch.connections, found.fetch.per_host, found.fetch.bandwidth) == (64, 1, 62_500_000)
    assert (found.fetch.prefetch, found.fetch.deadline) == (False, 1.0)
    assert (found.facade.listen, found.metrics.listen) == (Endpoint("::1", 1), Endpoint("0.0.0.0", 65535))
    assert (found.mount.backend, found.log.level, found.log.format) == ("lazy", "debug", "json")
    assert found.mount.selinux == "u:r:t:s0-s1:c0,c5"


def test_what_bounds_the_store_can_be_off(tmp_path: Path) -> None:
    found = _load(tmp_path, '[store]\nquota = ""\nreserve = ""\nkeep = ""\nscrub = ""').store
    assert (found.quota, found.reserve, found.keep, found.scrub) == (Amount(), Amount(), None, 0.0)
    assert _load(tmp_path, '[store]\nreserve = "0%"').store.reserve == Amount()


@pytest.mark.parametrize(("text", "bandwidth"), [("", None), ("500 MiB", 500 << 20), ("256KiB", 1 << 18)])
def test_bandwidth_is_bytes_a_second(tmp_path: Path, text: str, bandwidth: int | None) -> None:
    assert _load(tmp_path, f'[fetch]\nbandwidth = "{text}"').fetch.bandwidth == bandwidth


def test_what_is_verified_is_what_the_store_knows() -> None:
    assert get_args(config.Serving) == tuple(Verify)


def test_listeners_can_be_off(tmp_path: Path) -> None:
    found = _load(tmp_path, '[facade]\nlisten = ""\n[metrics]\nlisten = ""')
    assert (found.facade.listen, found.metrics.listen) == (None, None)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[fetch]\nfoo = 1", "fetch.foo", "connections, per_host, bandwidth, prefetch, deadline"),
        ("[fetsch]\nx = 1", "fetsch", "[facade], [fetch], [log]"),
        ("connections = 1", "connections", "[fetch]"),
        ("fetch = 3", "fetch", "heading [fetch]"),
        ('[fetch]\nconnections = "8"', "fetch.connections", "1 to 64"),
        ("[fetch]\nconnections = 0", "fetch.connections", "1 to 64"),
        ("[fetch]\nconnections = 65", "fetch.connections", "1 to 64"),
        ("[fetch]\nconnections = true", "fetch.connections", "1 to 64"),
        ("[fetch]\nper_host = 0", "fetch.per_host", "1 to 64"),
        ("[fetch]\nper_host = 65", "fetch.per_host", "1 to 64"),
        ("[fetch]\nper_host = 1.5", "fetch.per_host", "1 to 64"),
        ("[fetch]\nbandwidth = 500", "fetch.bandwidth", '"500 MiB"'),
        ('[fetch]\nbandwidth = "500"', "fetch.bandwidth: '500' has no unit", '"" for none'),
        ('[fetch]\nbandwidth = "500 Mbit"', "fetch.bandwidth: the unit 'Mbit' is not known", "MiB"),
        ('[fetch]\nbandwidth = "80%"', "fetch.bandwidth: '80%' is a share", "an amount of bytes a second"),
        ('[fetch]\nbandwidth = "0%"', "fetch.bandwidth: '0%' is a share", "an amount of bytes a second"),
        ('[fetch]\nbandwidth = "0 B"', "fetch.bandwidth: '0 B' is less than 256 KiB a second", '"" for none'),
        ("[fetch]\nprefetch = 1", "fetch.prefetch", "true or false"),
        ("[fetch]\ndeadline = 0", "fetch.deadline", "more than 0"),
        ("[fetch]\ndeadline = nan", "fetch.deadline", "more than 0"),
        ('[store]\nroot = "var"', "store.root", "absolute path"),
        ("[store]\nroot = 3", "store.root", "absolute path"),
        ("[store]\nquota = 200", "store.quota", '"200 GiB"'),
        ('[store]\nquota = "200"', "store.quota: '200' has no unit", '"200 GiB"'),
        ('[store]\nquota = "200 Gi"', "store.quota: the unit 'Gi' is not known", "GiB"),
        ('[store]\nquota = "0 B"', "store.quota: '0 B' is room for nothing", '"" for none'),
        ('[store]\nquota = "0%"', "store.quota: '0%' is room for nothing", '"" for none'),
        ('[store]\nquota = "101%"', "store.quota: '101%' is more than all of it", '"80%"'),
        ('[store]\nreserve = "100%"', "store.reserve", "leaves room for nothing"),
        ('[store]\nreserve = "ten"', "store.reserve", "not a number and a unit"),
        ('[store]\nkeep = "7 days"', "store.keep", '"12h"'),
        ("[store]\nkeep = 7", "store.keep", '"12h"'),
        ('[store]\nscrub = "0s"', "store.scrub", '"" for never'),
        ('[store]\nscrub = "40000d"', "store.scrub", "more than 36500d"),
        ('[store]\nverify = "never"', "store.verify", '"segment"'),
        ("[store]\nkept = 1", "store.kept", "root, quota, reserve, keep, verify, scrub"),
        ('[registry]\ndocker_config = "~/x"', "registry.docker_config", "absolute path"),
        ('[mount]\nbackend = "nfs"', "mount.backend", '"lazy"'),
        ('[mount]\nselinux = "container_ro_file_t"', "mount.selinux", "system_u:object_r"),
        ('[mount]\nselinux = "u:r:t:s0\\",rw"', "mount.selinux", "system_u:object_r"),
        ('[facade]\nlisten = "0.0.0.0:7878"', "facade.listen", "loopback"),
        ('[facade]\nlisten = "10.0.0.1:7878"', "facade.listen", "loopback"),
        ('[facade]\nlisten = "127.0.0.1"', "facade.listen", "host:port"),
        ('[facade]\nlisten = "127.0.0.1:0"', "facade.listen", "1 to 65535"),
        ('[facade]\nlisten = "127.0.0.1:65536"', "facade.listen", "1 to 65535"),
        ('[metrics]\nlisten = "node:7879"', "metrics.listen", "host:port"),
        ("[metrics]\nlisten = 7879", "metrics.listen", "host:port"),
        ('[log]\nlevel = "loud"', "log.level", '"warning"'),
        ('[log]\nformat = "xml"', "log.format", '"json"'),
        ("[store\nx", "not TOML", "line 1"),
    ],
)
def test_an_error_names_file_key_and_what_is_allowed(tmp_path: Path, text: str, key: str, says: str) -> None:
    with pytest.raises(InvalidInput) as failure:
        _load(tmp_path, text)
    assert failure.value.message.startswith(f"{tmp_path}/config.toml: {key}")
    assert says in str(failure.value)


def test_a_file_of_bytes(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not TOML"):
        config.load(file)
    with pytest.raises(InvalidInput, match="directory"):
        config.load(tmp_path)


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[store]\nroot = "/a"\n[fetch]\nconnections = 3')
    found = config.load(file, root=Path("/r"), run=tmp_path / "run", environment={})
    assert (found.store.root, found.fetch.connections) == (Path("/r"), 3)
    assert (found.run, found.address) == (tmp_path / "run", tmp_path / "run" / "modelvold.sock")
    assert config.load(file, address=Path("x.sock")).address == Path("x.sock").absolute()


def test_a_named_file_must_be_there_and_the_usual_one_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.toml: no such file"):
        config.load(tmp_path / "absent.toml")
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")
    assert config.load().fetch.connections == 32


@pytest.mark.parametrize(
    ("environment", "file"),
    [
        ({"DOCKER_CONFIG": "/d"}, "/d/config.json"),
        ({"HOME": "/home/x"}, "/home/x/.docker/config.json"),
        ({"DOCKER_CONFIG": ""}, "/root/.docker/config.json"),
    ],
)
def test_where_docker_keeps_credentials(tmp_path: Path, environment: dict[str, str], file: str) -> None:
    empty = tmp_path / "config.toml"
    empty.write_text("")
    assert config.load(empty, environment=environment).docker_config == Path(file)


def test_the_clients_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root asks the system's daemon, others their own: the same one that they start."""
    named = {"MODELVOLD_ADDRESS": "/e.sock"}
    assert places.client_address(Path("/f.sock"), named) == Path("/f.sock")
    assert places.client_address(None, named) == Path("/e.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.client_address(None, _XDG) == Path("/run/modelvold/modelvold.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for environment in (_XDG, {"HOME": "/home/x"}):
        served = config.load(for_user=True, environment=environment)
        assert places.client_address(None, environment) == served.address


_XDG = {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}


@pytest.mark.parametrize(
    ("environment", "root", "run"),
    [
        (_XDG, "/d/modelvold", "/r/modelvold"),
        ({"HOME": "/h"}, "/h/.local/share/modelvold", "/h/.local/state/modelvold/run"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/s"}, "/h/.local/share/modelvold", "/s/modelvold/run"),
        # What is not absolute is ignored, says the specification.
        ({**_XDG, "XDG_RUNTIME_DIR": "r", "XDG_DATA_HOME": "d"}, "/h/.local/share/modelvold", "/s/modelvold/run"),
        ({**_XDG, "XDG_RUNTIME_DIR": ""}, "/d/modelvold", "/s/modelvold/run"),
    ],
)
def test_a_users_places(environment: dict[str, str], root: str, run: str) -> None:
    found = config.load(for_user=True, environment=environment)
    assert (str(found.store.root), str(found.run), found.address) == (root, run, found.run / "modelvold.sock")
    assert (found.facade.listen, found.metrics.listen, found.for_user) == (None, None, True)


def test_a_users_own_file(tmp_path: Path) -> None:
    """It is the one that is read, and what it says holds, be it what the system's daemon has without being told."""
    environment = {"HOME": "/h", "XDG_CONFIG_HOME": str(tmp_path)}
    file = tmp_path / "modelvold/config.toml"
    file.parent.mkdir()
    file.write_text('[store]\nroot = "/var/lib/modelvold"\n[metrics]\nlisten = "127.0.0.1:7879"')
    found = config.load(for_user=True, environment=environment)
    assert found.store.root == Path("/var/lib/modelvold")
    assert (found.facade.listen, found.metrics.listen) == (None, Endpoint("127.0.0.1", 7879))
    assert config.load(root=tmp_path, for_user=True, environment=environment).store.root == tmp_path
    file.write_text("[fetch]\nfoo = 1")
    with pytest.raises(InvalidInput, match=str(file)):
        config.load(for_user=True, environment=environment)


def test_every_key_is_documented_with_what_it_takes_and_nothing_else_is() -> None:
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `[")]
    documented = {}
    for section, key, allowed, _default, _meaning in rows:
        documented[f"{section.strip().strip('`[]')}.{key.strip().strip('`')}"] = allowed.strip()
    assert documented == dict(config.ALLOWED)


def test_the_example_has_every_section_and_is_read(tmp_path: Path) -> None:
    example = DOCUMENT.read_text().partition("```toml\n")[2].partition("```")[0]
    assert re.findall(r"(?m)^\[(\w+)\]", example) == list(
        dict.fromkeys(name.partition(".")[0] for name in config.ALLOWED)
    )
    found = _load(tmp_path, example).store
    assert (found.quota, found.keep) == (Amount(bytes=3 << 39), 14 * 86400.0)
