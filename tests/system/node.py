"""A node of a test: a registry, our daemon, a containerd configured with it, and an image that sleeps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.backends import LAZY, Backend
from tests.lab.containerd import Containerd
from tests.lab.cri import Cri, Pod
from tests.lab.daemon import Daemon, Settings
from tests.lab.registry import Registry


@dataclass(frozen=True, slots=True)
class Node:
    """A node with our daemon under a containerd; `image` is the id of an ordinary image that sleeps."""

    registry: Registry
    daemon: Daemon
    cri: Cri
    image: str

    def container(self, name: str, volume: str) -> tuple[Pod, str]:
        """A pod's only container, running, with the model at /model."""
        pod = self.cri.run_pod(name)
        container = self.cri.create_container(pod, self.image, {"/model": volume})
        self.cri.start(container)
        return pod, container

    def sh(self, container: str, script: str) -> str:
        ran = self.cri.exec(container, ["/bin/sh", "-c", script], timeout=280)
        assert ran.code == 0, ran.stderr
        return ran.stdout.decode()


@contextmanager
def node(folder: Path, backend: Backend = LAZY) -> Iterator[Node]:
    """All of it, with prefetch off; nothing may have to be taken down by force."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(folder / "registry"))
        image = registry.push.image()
        settings: Settings = {"fetch": {"prefetch": False}, "mount": backend.setting}
        daemon = Daemon(folder / "daemon", settings, hosts_dir=folder / "containerd/certs.d")
        containerd = Containerd(folder / "containerd", image.reference, daemon.for_containerd)
        containerd.hosts(registry)
        stack.enter_context(daemon)
        stack.enter_context(containerd)
        yield Node(registry, daemon, containerd.cri, containerd.cri.pull(image.reference))
    assert containerd.leftovers == []


def segments_of(daemon: Daemon) -> list[Path]:
    """The files that hold layers' bytes in its store."""
    return [path for path in (daemon.root / "content").rglob("*") if path.is_file()]


def status_of(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok(daemon, "status", "--json").stdout)
    return found


def ok(daemon: Daemon, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`modelvold WORDS…`, which must succeed."""
    ran = daemon.cli(*words)
    assert ran.returncode == 0, ran.stderr
    return ran
