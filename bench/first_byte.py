"""How long until a container reads a model of 4 × 512 MiB, and how much is fetched for it?

    make bench        (or: python -m bench.first_byte [--rounds N] [--mebibytes-a-layer M])

Each round, in one run: a fresh store and a fresh containerd; CRI PullImage of the artifact, pod and container with the image
volume, 1 MiB from the middle of a file. The peer: the same containerd with overlayfs pulling the same bytes as an ordinary image of
four uncompressed tar layers, and running it. Prefetch is off, so that what is fetched is what was asked for. Medians; the machine is
noisy, so the ratio is the figure.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.lab import debian, documents
from tests.lab.containerd import Containerd
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry

MIB = 1 << 20
_T = TypeVar("_T")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--mebibytes-a-layer", type=int, default=512)
    chosen = arguments.parse_args()
    size = chosen.mebibytes_a_layer * MIB
    with tempfile.TemporaryDirectory(prefix="bench-", dir=lazy_folder().parent) as name:
        folder = Path(name)
        with Registry(folder / "registry") as registry:
            busybox = registry.push.image()
            model = registry.push.model(
                {f"model-{n}.safetensors": Generated(size, n) for n in range(4)}, "bench/model", "v1"
            )
            lazy = [
                _lazy(registry, busybox.reference, model.reference, size, folder / f"lazy-{n}")
                for n in range(chosen.rounds)
            ]
            image = _push_as_image(registry, size, folder)
            peer = [_peer(registry, busybox.reference, image, size, folder / f"peer-{n}") for n in range(chosen.rounds)]
    _print(lazy, peer, size)


def _lazy(registry: Registry, busybox: str, reference: str, size: int, folder: Path) -> dict[str, float]:
    daemon = Daemon(
        folder / "daemon",
        {"fetch": {"prefetch": False}, "log": {"level": "info"}},
        hosts_dir=folder / "containerd/certs.d",
    )
    containerd = Containerd(folder / "containerd", busybox, daemon.for_containerd)
    containerd.hosts(registry)
    with daemon, containerd:
        image = containerd.cri.pull(busybox)
        registry.forget()
        pulled, volume = _timed(lambda: containerd.cri.pull(reference))
        ran, container = _timed(lambda: _start(containerd, image, {"/model": volume}))
        middle = f"dd if=/model/model-2.safetensors bs=1M skip={size // 2 // MIB} count=1 2>/dev/null | sha256sum"
        read, _ = _timed(lambda: containerd.cri.exec(container, ["/bin/sh", "-c", middle]))
        return {"pull": pulled, "run": ran, "first MiB": read, "bytes fetched": float(registry.bytes_served())}


def _peer(registry: Registry, busybox: str, reference: str, size: int, folder: Path) -> dict[str, float]:
    with Containerd(folder / "containerd", busybox) as containerd:
        containerd.cri.pull(busybox)
        registry.forget()
        pulled, image = _timed(lambda: containerd.cri.pull(reference))
        ran, container = _timed(lambda: _start(containerd, image, {}))
        middle = f"dd if=/model/model-0.safetensors bs=1M skip={size // 2 // MIB} count=1 2>/dev/null | sha256sum"
        read, _ = _timed(lambda: containerd.cri.exec(container, ["/bin/sh", "-c", middle]))
        return {"pull": pulled, "run": ran, "first MiB": read, "bytes fetched": float(registry.bytes_served())}


def _push_as_image(registry: Registry, size: int, folder: Path) -> str:
    """An ordinary image: busybox, and above it one uncompressed tar layer for each of the model's files."""
    push = registry.push
    layers = [push.described("bench/image", documents.busybox_layer(debian.busybox(), None))]
    for number in range(4):
        tar = folder / f"layer-{number}.tar"
        with tarfile.open(tar, "w") as archive:
            member = tarfile.TarInfo(f"model/model-{number}.safetensors")
            member.size = size
            archive.addfile(member, _Stream(Generated(size, number)))
        layers.append(push.described("bench/image", tar))
        tar.unlink()
    config = documents.image_config([str(layer["digest"]) for layer in layers])
    push.manifest("bench/image", "v1", documents.image_manifest(push.described("bench/image", config), layers))
    return f"{registry.host}/bench/image:v1"


class _Stream:
    """A generated content as the file that tarfile reads from."""

    def __init__(self, content: Generated) -> None:
        self._content = content
        self._at = 0

    def read(self, length: int) -> bytes:
        block = self._content.at(self._at, length)
        self._at += len(block)
        return block


def _start(containerd: Containerd, image: str, volumes: dict[str, str]) -> str:
    container = containerd.cri.create_container(containerd.cri.run_pod("bench"), image, volumes)
    containerd.cri.start(container)
    return container


def _timed(do: Callable[[], _T]) -> tuple[float, _T]:
    started = time.monotonic()
    result = do()
    return time.monotonic() - started, result


def _print(lazy: list[dict[str, float]], peer: list[dict[str, float]], size: int) -> None:
    print(f"machine: {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}")
    rounds = f"medians of {len(lazy)} and {len(peer)}"
    print(f"model: 4 × {size // MIB} MiB raw ModelPack layers on docker-registry, loopback; prefetch off; {rounds}")
    print(f"{'':24}{'modelvold':>14}{'overlayfs':>14}{'ratio':>9}")
    for what in lazy[0]:
        ours = statistics.median(run[what] for run in lazy)
        theirs = statistics.median(run[what] for run in peer)
        unit = "MiB" if what == "bytes fetched" else "s"
        scale = MIB if unit == "MiB" else 1
        print(f"{what + ', ' + unit:24}{ours / scale:14.3f}{theirs / scale:14.3f}{ours / theirs:9.4f}")


if __name__ == "__main__":
    main()
