"""Where bad input is shown: a daemon and a containerd in front of a registry that misbehaves and one that does not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.registry import Auth, FakeRegistry
from tests.lab import debian, documents, needs
from tests.lab.backends import Backend
from tests.lab.check import settled
from tests.lab.containerd import Containerd
from tests.lab.daemon import Daemon, Settings
from tests.lab.documents import Document
from tests.lab.mounts import Mounted, mounted
from tests.lab.push import Pushed
from tests.lab.registry import Registry

_LOUD = re.compile(r" (WARNING|ERROR|CRITICAL) ")


@dataclass(frozen=True, slots=True)
class Stage:
    """`registry` is a real one that holds the `image`; `fake` does what real ones cannot be made to do, `private` wants a name."""

    folder: Path
    registry: Registry
    fake: FakeRegistry
    private: FakeRegistry
    daemon: Daemon
    containerd: Containerd
    image: Pushed
    backend: Backend

    def lead(self, host: str) -> None:
        """Makes containerd ask the façade first for what is in the registry `host`, a `host:port` of plain HTTP."""
        home = self.daemon.hosts_dir / f"{host.replace(':', '_')}_"
        home.mkdir(parents=True, exist_ok=True)
        facade = f'[host."http://{self.daemon.facade}"]\n  capabilities = ["pull", "resolve"]\n'
        (home / "hosts.toml").write_text(f'server = "http://{host}"\n{facade}')

    def volumes(self) -> dict[str, Document]:
        """What `modelvold status` tells of each volume, by reference."""
        ran = self.daemon.cli("status", "--json")
        assert ran.returncode == 0, ran.stderr
        return {volume["reference"]: volume for volume in json.loads(ran.stdout)["volumes"]}

    def mounts(self) -> list[Mounted]:
        """The volumes mounted, and what stands in the folders given to `modelvold mount`."""
        return mounted(self.daemon.run / "volumes") + mounted(self.folder / "at")

    def loud(self, name: str) -> list[str]:
        """The lines of the daemon's log, warnings and worse, in which `name` stands."""
        return [line for line in self.daemon.log_text().splitlines() if name in line and _LOUD.search(line)]

    def tracebacks(self) -> int:
        return self.daemon.log_text().count("Traceback")

    def pull(self, reference: str) -> subprocess.CompletedProcess[str]:
        return self.daemon.cli("pull", reference)

    def mount(self, reference: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "at").mkdir(exist_ok=True)
        return self.daemon.cli("mount", reference, self.folder / "at")

    def umount(self) -> None:
        ran = self.daemon.cli("umount", self.folder / "at")
        assert ran.returncode == 0, ran.stderr

    def refused_by_cri(self, reference: str) -> str:
        """What a pod's event would say of a PullImage that must fail."""
        with pytest.raises(grpc.RpcError) as error:
            self.containerd.cri.pull(reference)
        assert isinstance(error.value, grpc.Call)
        return str(error.value.details())


@contextmanager
def staged(folder: Path, backend: Backend) -> Iterator[Stage]:
    """All of it, gone and settled afterwards; nothing may have had to be taken away by force."""
    with (
        settled(folder),
        Registry(folder / "r") as registry,
        FakeRegistry() as fake,
        FakeRegistry(auth=Auth()) as private,
    ):
        image = registry.push.image()
        settings: Settings = {"fetch": {"prefetch": False}, "mount": backend.setting}
        daemon = Daemon(folder / "d", settings, hosts_dir=folder / "c/certs.d")
        containerd = Containerd(folder / "c", image.reference, daemon.for_containerd)
        stage = Stage(folder, registry, fake, private, daemon, containerd, image, backend)
        for host in (registry.host, fake.address, private.address):
            stage.lead(host)
        with daemon, containerd:
            yield stage
        assert containerd.leftovers == []


@contextmanager
def staged_or_skipped(backend: Backend) -> Iterator[Stage]:
    """On a stage in a folder of its own; where this machine cannot have one, the tests are skipped with the reason."""
    folder = needs.lazy_folder()
    try:
        if reason := needs.missing_for_lazy(folder):
            pytest.skip(reason)
        try:
            debian.containerd(), debian.runc(), debian.docker_registry(), debian.busybox()
        except debian.Unavailable as unavailable:
            pytest.skip(str(unavailable))
        with staged(folder, backend) as stage:
            yield stage
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_model(fake: FakeRegistry, repository: str, layers: list[Document], **fields: Any) -> str:
    """A ModelPack manifest with these layer descriptors; its reference."""
    config = documents.model_config(layers)
    described = {"digest": str(fake.put_blob(config)), "size": len(config)}
    manifest = {**documents.model_manifest(described, layers), **fields}
    return put(fake, repository, documents.to_json(manifest))


def put(fake: FakeRegistry, repository: str, manifest: bytes) -> str:
    fake.put_manifest(repository, "v1", manifest)
    return f"{fake.address}/{repository}:v1"
