"""Where trust is tested: a registry, the daemon and a containerd a test. Prefetch is off: a byte served is one read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.lab.containerd import Containerd
from tests.lab.content import Content, Generated
from tests.lab.cri import Cri
from tests.lab.daemon import Daemon, Settings
from tests.lab.push import Pushed
from tests.lab.registry import Registry

#: The first word of our User-Agent.
OURS = "modelvold"
MIB = 1 << 20
#: The longest piece of content that is fetched at once (volume's cut, for contents below 1 GiB).
SEGMENT = 16 * MIB


@dataclass(frozen=True, slots=True)
class Node:
    """`image` is an ordinary one, pulled; `registry` is the one it came from."""

    registry: Registry
    daemon: Daemon
    containerd: Containerd
    image: str

    @property
    def cri(self) -> Cri:
        return self.containerd.cri

    def run(self, volumes: Mapping[str, str]) -> str:
        """A running container with these image volumes."""
        container = self.cri.create_container(self.cri.run_pod(), self.image, volumes)
        self.cri.start(container)
        return container

    def refusal(self, volume: str) -> str:
        """Why no container could be created with `volume`."""
        pod = self.cri.run_pod()
        return told(lambda: self.cri.create_container(pod, self.image, {"/model": volume}))


@contextmanager
def node(folder: Path, settings: Settings | None = None, *, hosts_dir: Path | None = None) -> Iterator[Node]:
    """`hosts_dir` is where the daemon looks, if not where containerd does. Fails if taking it down needed force."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(folder / "registry"))
        sandbox = registry.push.image().reference
        ours: Settings = {"fetch": {"prefetch": False}, **(settings or {})}
        daemon = Daemon(folder / "daemon", ours, hosts_dir=hosts_dir or folder / "containerd/certs.d")
        containerd = Containerd(folder / "containerd", sandbox, daemon.for_containerd)
        containerd.hosts(registry)
        stack.enter_context(daemon)
        stack.enter_context(containerd)
        yield Node(registry, daemon, containerd, containerd.cri.pull(sandbox))
    assert containerd.leftovers == []


def told(call: Callable[[], object]) -> str:
    """The text that a pod's event would show."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return str(refused.value.details())


def model(registry: Registry, seed: int, repository: str = "models/lab") -> tuple[Pushed, Generated]:
    """A model with weights of three segments, and them."""
    weights = Generated(3 * SEGMENT, seed)
    files: dict[str, Content] = {"config.json": b'{"seed": %d}' % seed, "weights.safetensors": weights}
    return registry.push.model(files, repository), weights


def askers(registry: Registry, digest: str) -> set[str]:
    """Whose programs were served this blob."""
    return {request.agent.partition("/")[0] for request in registry.blob_requests(digest)}


def digests(cri: Cri, container: str, place: str) -> dict[str, str]:
    """The sums of all files below `place`, as the container computes them."""
    ran = cri.exec(container, ["/bin/sh", "-c", f"cd {place} && find . -type f -exec sha256sum {{}} +"])
    assert ran.code == 0, ran.stderr
    pairs = (line.split(maxsplit=1) for line in ran.stdout.decode().splitlines())
    return {path.removeprefix("./"): f"sha256:{found}" for found, path in pairs}
