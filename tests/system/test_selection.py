"""Which pods are modelvold's: each file of deploy/containerd in a real containerd, and what pods get there.

What a container's root and its model lie on is read from its own mountinfo, what crossed the wire from the registry's log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.lab.content import Generated
from tests.lab.cri import RUNTIME_HANDLER, Cri, Pod
from tests.lab.daemon import Daemon, Settings
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.lab.selection import NODE_DEFAULT, OBJECTS, RUNTIME_CLASS, Deployed, leaves

pytestmark = pytest.mark.system

_WEIGHTS = Generated(9 << 20, seed=6)
_SHA256 = hashlib.sha256(_WEIGHTS.at(0, _WEIGHTS.size)).hexdigest()


@dataclass(frozen=True, slots=True)
class Stage:
    """A node with one of the files: an ordinary image that sleeps, and a model, are in its registry."""

    registry: Registry
    daemon: Daemon
    containerd: Deployed
    image: Pushed
    model: Pushed

    @property
    def cri(self) -> Cri:
        return self.containerd.cri

    def container(self, pod: Pod, volume: Pushed | None = None, *, name: str = "main") -> str:
        """Running, of the ordinary image, with `volume` at /model; all is pulled as the kubelet does for this pod."""
        image = self.cri.pull(self.image.reference, sandbox_config=pod.config)
        volumes = {"/model": self.cri.pull(volume.reference, sandbox_config=pod.config)} if volume else {}
        container = self.cri.create_container(pod, image, volumes, name=name)
        self.cri.start(container)
        return container

    def sh(self, container: str, script: str) -> str:
        ran = self.cri.exec(container, ["/bin/sh", "-c", script])
        assert ran.code == 0, ran.stderr
        return ran.stdout.decode()

    def snapshotter(self, container: str) -> str:
        """Whose snapshot the container's root is."""
        _, options = self.mount(container, "/")
        upper = Path(next(option for option in options if option.startswith("upperdir=")).removeprefix("upperdir="))
        owners = {"modelvold": self.daemon.root, "overlayfs": self.containerd.root / "lib"}
        return next(name for name, folder in owners.items() if upper.is_relative_to(folder))

    def mount(self, container: str, point: str) -> tuple[str, list[str]]:
        """Type and file system's options of what is mounted at `point`."""
        for line in self.sh(container, "cat /proc/self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[4] == point:
                kind, _, options = after.split()
                return kind, options.split(",")
        raise AssertionError(f"nothing is mounted at {point}")

    def reads_its_model_lazily(self, container: str) -> None:
        """Nothing of the model has come before it is read; then it is right, and comes once."""
        kind, _ = self.mount(container, "/model")
        assert kind == "erofs"
        assert self.registry.blob_requests(self._weights) == []
        assert self.sh(container, "sha256sum /model/w.bin").split()[0] == _SHA256
        assert self.registry.bytes_of(self._weights) == _WEIGHTS.size

    @property
    def _weights(self) -> str:
        return self.model.layers["w.bin"]


@contextmanager
def stage(folder: Path, file: Path) -> Iterator[Stage]:
    """Nothing may have to be taken down by force."""
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(folder / "registry"))
        image = registry.push.image(files={"/etc/ordinary": b"yes"})
        model = registry.push.model({"w.bin": _WEIGHTS, "config.json": b"{}"})
        settings: Settings = {"fetch": {"prefetch": False}}
        daemon = Daemon(folder / "daemon", settings, hosts_dir=folder / "containerd/certs.d")
        containerd = Deployed(folder / "containerd", image.reference, daemon.for_containerd, file)
        containerd.hosts(registry)
        stack.enter_context(daemon)
        stack.enter_context(containerd)
        yield Stage(registry, daemon, containerd, image, model)
    assert containerd.leftovers == []


def said(refused: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    return str(refused.value.details())


@pytest.mark.parametrize("file", [NODE_DEFAULT, RUNTIME_CLASS], ids=lambda file: file.stem)
def test_what_a_file_says_is_what_containerd_does(tmp_path: Path, file: Path) -> None:
    """Here too, where the lab's own settings stand beside it."""
    daemon = Daemon(tmp_path / "daemon")
    containerd = Deployed(tmp_path / "containerd", "localhost/pause:v1", daemon.for_containerd, file)
    containerd.write()
    made, unpacked = dict(leaves(containerd.dump())), []
    for key, value in leaves(containerd.deployed):
        if key[-1] == "unpack_config":
            unpacked = [{name: each[name] for name in value[0]} for each in made[key]]
            assert unpacked == value
        elif key[-1] != "SystemdCgroup":
            assert made[key] == value
    assert [each["snapshotter"] for each in unpacked] == ["overlayfs", "modelvold"]


def test_node_default(folder: Path) -> None:
    with stage(folder, NODE_DEFAULT) as here:
        pod = here.cri.run_pod("any")
        container = here.container(pod, here.model)
        assert here.snapshotter(container) == "modelvold"
        assert here.sh(container, "echo more >>/etc/ordinary; cat /etc/ordinary") == "yesmore\n"
        here.reads_its_model_lazily(container)


def test_runtime_class(folder: Path) -> None:
    """Pods with the class and its annotation are modelvold's, and all others on the same node are not."""
    objects = OBJECTS.read_text()
    (handler,) = re.findall(r"(?m)^handler: (\S+)$", objects)
    (annotated,) = re.findall(rf"(?m)^    {re.escape(RUNTIME_HANDLER)}: (\S+)$", objects)
    with stage(folder, RUNTIME_CLASS) as here:
        ordinary = here.container(here.cri.run_pod("ordinary"))
        assert here.snapshotter(ordinary) == "overlayfs"
        pod = here.cri.run_pod("lazy", handler, {RUNTIME_HANDLER: annotated})
        # A field of CRI that containerd 2.1 does not know, and later ones believe before the annotation.
        here.cri.pull(here.model.reference, sandbox_config=pod.config, runtime_handler=handler)
        lazy = here.container(pod, here.model)
        assert here.snapshotter(lazy) == "modelvold"
        assert here.sh(lazy, "cat /etc/ordinary") == "yes"
        here.reads_its_model_lazily(lazy)

        # Not to be had from a pod of another snapshotter, present as the image is: refused, and not an empty folder.
        with pytest.raises(grpc.RpcError) as refused:
            here.container(here.cri.run_pod("other"), here.model)
        assert "another snapshotter asked" in said(refused)

        # A node that has booted and on which modelvold does not start.
        here.daemon.stop()
        here.containerd.restart()
        after = here.container(here.cri.run_pod("after"))
        assert here.snapshotter(after) == "overlayfs"
        assert here.sh(ordinary, "cat /etc/ordinary") == "yes"
        with pytest.raises(grpc.RpcError) as refused:
            here.cri.run_pod("lazy too", handler)
        assert str(here.daemon.socket) in said(refused)
        here.daemon.start()


def test_a_class_without_its_annotation(folder: Path) -> None:
    """Its pulls go to overlayfs. An ordinary image volume is unpacked once more; a model is refused, with what to do."""
    with stage(folder, RUNTIME_CLASS) as here:
        pod = here.cri.run_pod("forgetful", "modelvold")
        container = here.container(pod, here.image)
        assert here.snapshotter(container) == "modelvold"
        assert here.sh(container, "cat /model/etc/ordinary") == "yes"

        with pytest.raises(grpc.RpcError) as refused:
            here.cri.pull(here.model.reference, sandbox_config=pod.config)
        assert "another snapshotter asked" in said(refused)
        assert RUNTIME_HANDLER in said(refused)
        assert here.cri.image_status(here.model.reference) is None

        # Around the façade containerd takes it for an image without layers.
        here.containerd.hosts(here.registry, facade=False)
        volume = here.cri.pull(here.model.reference, sandbox_config=pod.config)
        with pytest.raises(grpc.RpcError) as refused:
            here.cri.create_container(pod, volume, {"/model": volume}, name="empty")
        assert "would be empty" in said(refused)
        assert "remove the image" in said(refused)

        here.containerd.hosts(here.registry)
        here.cri.remove_image(volume)
        here.registry.forget()
        annotated = here.cri.run_pod("mindful", "modelvold", {RUNTIME_HANDLER: "modelvold"})
        here.reads_its_model_lazily(here.container(annotated, here.model))
