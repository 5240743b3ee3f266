"""The files of deploy/: nothing is wrong with them, as a real containerd reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelvold.doctor import containerd, containerd_says, hosts_files
from modelvold.doctor.configuration import read
from modelvold.doctor.hosts_files import HostsFile
from modelvold.doctor.line import Line
from modelvold.doctor.table import Ours

from tests.lab import debian

DEPLOY = Path(__file__).parents[2] / "deploy"
HOSTS_DIR = Path("/etc/containerd/certs.d")
FACADE = "127.0.0.1:7878"


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("PATH", str(debian.containerd().parent))
    except debian.Unavailable as reason:
        pytest.skip(str(reason))


SOME = "modelvold for pods of the runtime handler modelvold, which need the annotation io.containerd.cri.runtime-handler too"


@pytest.mark.parametrize(
    ("name", "selects"),
    [("node-default", "modelvold, for all pods"), ("runtime-class", f"{SOME}; overlayfs for all others")],
)
def test_a_containerd(name: str, selects: str) -> None:
    file = DEPLOY / f"containerd/{name}.toml"
    ours = Ours(Path("/run/modelvold/modelvold.sock"), Path("/var/lib/modelvold"), HOSTS_DIR, file)
    reading = read(containerd_says.seen(file), ours)
    assert reading.table is not None
    lines = [*reading.lines, *containerd.check(reading.table, ours, reading.version)]
    assert [line for line in lines if line.level != "ok"] == []
    assert next(line.seen for line in lines if line.what == "CRI snapshotter") == selects


def test_a_registry() -> None:
    document = (DEPLOY / "registry/hosts.toml").read_bytes()
    file = HostsFile(HOSTS_DIR / "registry.example.com/hosts.toml", document)
    lines: list[Line] = list(hosts_files.check(HOSTS_DIR, [file], FACADE, (2, 1)))
    assert [(line.level, line.seen) for line in lines] == [("ok", "lead to the façade: registry.example.com")]
