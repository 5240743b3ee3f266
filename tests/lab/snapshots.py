"""A snapshotter behind its real door, a client that asks as containerd does, and mounts as containerd makes them."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from modelvold.errors import NotFound
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest, parse, to_json
from modelvold.oci.modelpack import read
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import GivenSynthetic, Synthetic, synthesize
from modelvold.rpc.gen import mount_pb2
from modelvold.rpc.server import Server
from modelvold.rpc.snapshots import snapshots_door
from modelvold.snapshot.snapshotter import Snapshotter
from modelvold.store.database import Database

from tests.lab.services import Snapshots


@dataclass
class Shelf:
    """Volumes that are plain folders, and proofs; it remembers what it was asked. `opening` runs inside `open`."""

    folder: Path
    opening: Callable[[], None] = lambda: None
    given: dict[Digest, GivenSynthetic] = field(default_factory=dict)
    opened: list[tuple[Repository, Digest, str, float]] = field(default_factory=list)
    unmounted: list[set[str]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def open(self, repository: Repository, original: Digest, reference: str, wait: float) -> str:
        self.opened.append((repository, original, reference, wait))
        self.opening()
        path = self.folder / original.hex
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.bin").write_bytes(b"weights of " + original.hex.encode())
        self.ids.add(original.hex)
        return original.hex

    def mounted(self, volume_id: str) -> Path:
        if volume_id not in self.ids:
            raise NotFound(f"volume {volume_id}: not known")
        return self.folder / volume_id

    def unmount_unused(self, in_use: set[str]) -> None:
        self.unmounted.append(in_use)

    def synthetic_of(self, digest: Digest) -> GivenSynthetic | None:
        return self.given.get(digest)

    def give(self, repository: str, seed: str = "model") -> Pull:
        """As the façade does when it is asked for a model in `repository`."""
        document = _model(seed)
        manifest = parse(document, seed)
        assert isinstance(manifest, Manifest)
        place = Repository.parse(repository)
        synthetic = synthesize(place, read(manifest, seed))
        self.given[synthetic.manifest_digest] = GivenSynthetic(
            synthetic.manifest_digest, place, manifest.digest, document, private=False
        )
        return Pull(f"{repository}:v1", synthetic, manifest.digest)


@dataclass(frozen=True)
class Pull:
    """One image as containerd pulled it."""

    image: str
    synthetic: Synthetic
    original: Digest

    @property
    def target(self) -> str:
        return str(self.synthetic.chain_id)

    @property
    def labels(self) -> dict[str, str]:
        """What arrives at Prepare: the layer's annotations, and what containerd adds."""
        layer = _layer(self.synthetic)
        return {
            **layer.annotations,
            "containerd.io/snapshot.ref": self.target,
            "containerd.io/snapshot/cri.image-ref": str(Reference.parse(self.image)),
            "containerd.io/snapshot/cri.manifest-digest": str(self.synthetic.manifest_digest),
            "containerd.io/snapshot/cri.layer-digest": str(layer.digest),
        }


def _layer(synthetic: Synthetic):  # type: ignore[no-untyped-def]
    manifest = parse(synthetic.manifest, "synthetic")
    assert isinstance(manifest, Manifest)
    return manifest.layers[0]


def _model(seed: str) -> bytes:
    weights = {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "digest": str(Digest.of(seed.encode())),
        "size": len(seed),
        "annotations": {"org.cncf.model.filepath": "model.bin"},
    }
    config = {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    return to_json(
        {
            "schemaVersion": 2,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": config,
            "layers": [weights],
        }
    )


class SnapshotsLab:
    """The snapshotter on `root`, behind a server, with a client to it. `restart` closes all of it and starts again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shelf = Shelf(root / "volumes")
        self.address = root / "run" / "modelvold.sock"
        self._life = ExitStack()
        self.snapshotter: Snapshotter
        self.client: Snapshots

    def __enter__(self) -> Self:
        database = Database(self.root / "catalog.db")
        self._life.callback(database.close)
        self.snapshotter = Snapshotter(self.root, database, self.shelf, self.shelf)
        self._life.enter_context(Server(self.address, [snapshots_door(self.snapshotter)]))
        self.client = self._life.enter_context(Snapshots(self.address))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._life.close()

    def restart(self) -> None:
        self.close()
        self.__enter__()

    def layer(self, name: str, parent: str, change: Callable[[Path], None]) -> None:
        """Prepares on `parent`, mounts, changes, unmounts, commits as `name`: how an image's layer is unpacked."""
        with mounted(self.client.prepare(f"extract {name}", parent), self.root / "at") as at:
            change(at)
        self.client.commit(name, f"extract {name}")


@contextmanager
def mounted(mounts: Sequence[mount_pb2.Mount], at: Path) -> Iterator[Path]:
    """Mounts in order, and unmounts."""
    at.mkdir(exist_ok=True)
    with ExitStack() as made:
        for mount in mounts:
            folder, options = _compact(mount)
            command = ["mount", "-t", mount.type, "-o", ",".join(options), mount.source, str(at)]
            if mount.type == "bind":
                command[1:3] = []
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            made.callback(subprocess.run, ["umount", str(at)], check=True)
        yield at


def _compact(mount: mount_pb2.Mount) -> tuple[str, list[str]]:
    """mount(2) takes a page of options, so containerd goes to the lowers' common folder and names them from there."""
    lowers = [option for option in mount.options if option.startswith("lowerdir=")]
    if not lowers:
        return "/", list(mount.options)
    paths = lowers[0].removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(paths) if len(paths) > 1 else "/"
    relative = "lowerdir=" + ":".join(os.path.relpath(path, common) for path in paths)
    return common, [relative if option == lowers[0] else option for option in mount.options]


def mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for point in (line.split()[4] for line in lines) if Path(point).is_relative_to(folder)]


def rpc_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rpc")]


@contextmanager
def settled_lab(root: Path) -> Iterator[SnapshotsLab]:
    """A lab, which fails when it leaves a mount, a thread or its socket behind."""
    with SnapshotsLab(root) as lab:
        yield lab
    assert mounts_below(root) == []
    assert rpc_threads() == []
    assert not lab.address.exists()


def refused(code: grpc.StatusCode, call: Callable[..., object], *arguments: object) -> str:
    """The text of the error of code `code` that the call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments)
    assert error.value.code() is code, error.value.details()
    return str(error.value.details())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that an image's layer says of a file, but for times and link counts."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def write(path: Path, text: str, mode: int = 0o777) -> None:
    path.write_text(text)
    path.chmod(mode)


def nanoseconds(moment: Timestamp) -> int:
    """Since 1970."""
    return moment.seconds * 1_000_000_000 + moment.nanos
