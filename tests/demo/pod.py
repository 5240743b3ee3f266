"""The walk of root on a kernel with pre-content events: a container reads the model, lazily, through a real containerd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from tests.demo.stage import FIRST, MOST_AT_FIRST, WEIGHTS, NotAsPromised, Stage, check, packed
from tests.lab import debian
from tests.lab.containerd import Containerd
from tests.lab.cri import Cri
from tests.lab.daemon import Daemon
from tests.lab.registry import Registry


@dataclass(frozen=True, slots=True)
class _Node:
    """The stage, with a containerd on it; `image` is the id of an image that sleeps."""

    stage: Stage
    cri: Cri
    image: str


def play(console: Console, folder: Path, stack: ExitStack) -> None:
    """Everything it starts lives in `folder` and ends with `stack`. Raises NotAsPromised."""
    with _containerds_words():
        _act(_set(console, folder, stack))


@contextmanager
def _containerds_words() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as reason:
        said = reason.details() if isinstance(reason, grpc.Call) else reason
        raise NotAsPromised(f"containerd says: {said}") from reason


def _set(console: Console, folder: Path, stack: ExitStack) -> _Node:
    console.print(
        f"containerd {debian.containerd()}, runc {debian.runc()}, registry {debian.docker_registry()}", soft_wrap=True
    )
    model = debian.real_model()
    registry = stack.enter_context(Registry(folder / "registry"))
    daemon = Daemon(folder / "daemon", {"fetch": {"prefetch": False}}, hosts_dir=folder / "containerd/certs.d")
    image = registry.push.image()
    containerd = Containerd(folder / "containerd", image.reference, daemon.for_containerd)
    containerd.hosts(registry)
    # The daemon first: containerd asks its snapshotter as soon as it starts; and last down, when no pod is left.
    stack.enter_context(daemon)
    stack.enter_context(containerd)
    stage = packed(console, registry, daemon, model)
    stage.tell("prefetch is off until the container has read its first MiB, so that what is fetched is what was read\n")
    return _Node(stage, containerd.cri, containerd.cri.pull(image.reference))


def _act(node: _Node) -> None:
    stage, cri = node.stage, node.cri
    timeline = stage.timeline()
    with timeline.step("PullImage answered"):
        volume = cri.pull(stage.reference)
    with timeline.step("container with the image volume runs"):
        pod = cri.run_pod("demo")
        container = cri.create_container(pod, node.image, {"/model": volume})
        cri.start(container)
    with timeline.step("its first MiB of weights read"):
        first = _read(cri, container, f"head -c {FIRST} /model/{WEIGHTS} | sha256sum").split()[0]
    stage.check_first(first)
    share = timeline.share(timeline.moments[-1])
    check(share < MOST_AT_FIRST, f"the registry had served {share:.1%} of the model for the first MiB")
    with timeline.step("every file read, all checksums right"):
        sums = _read(cri, container, "cd /model && find . -type f -exec sha256sum {} +")
    stage.check_all(_listed(sums))
    with timeline.step("modelvold pull: present, durable, verified"):
        stage.cli("pull", stage.reference)
    refused = cri.exec(container, ["/bin/touch", "/model/new"])
    check(b"Read-only file system" in refused.stderr, "the volume could be written to")
    timeline.show(stage.console)
    stage.tell("Each step's end; a file that was read is not fetched again.\n")
    stage.show("status")
    cri.remove_pod(pod)
    cri.remove_image(volume)


def _read(cri: Cri, container: str, script: str) -> str:
    ran = cri.exec(container, ["/bin/sh", "-c", script])
    check(ran.code == 0, f"{script!r} in the container failed: {ran.stderr.decode(errors='replace').strip()}")
    return ran.stdout.decode()


def _listed(sums: str) -> dict[str, str]:
    """`sha256sum`'s lines, by path below the volume."""
    pairs = (line.split(maxsplit=1) for line in sums.splitlines())
    return {path.removeprefix("./"): digest for digest, path in pairs}
