"""The rooms from the registry to the lending desk, in one process, over a registry with bad habits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.lending import Lending
from modelvold.lending.report import Progress
from modelvold.mount.backend import Backend
from modelvold.mount.directory import Directory
from modelvold.mount.erofs import Complete
from modelvold.mount.places import Binds, Links, Places
from modelvold.mount.table import MountTable
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference, Repository
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.opener import Opener

from tests.fakes.registry import FakeRegistry
from tests.lab import documents
from tests.lab.check import settled
from tests.lab.mounts import unmount_below
from tests.lab.push import Layer

REPOSITORY = "models/tiny"
_THREADS = ("fetch-", "open", "headers", "complete", "rates", "verify-", "sync-", "record")


@dataclass
class Desk:
    registry: FakeRegistry
    store: Store
    table: MountTable
    lending: Lending
    run: Path

    @property
    def reference(self) -> str:
        return f"{self.registry.address}/{REPOSITORY}:v1"

    @property
    def repository(self) -> Repository:
        return Reference.parse(self.reference).repository

    def put(self, *layers: Layer, tag: str = "v1") -> Digest:
        """A ModelPack artifact of raw layers and tars; the manifest's digest."""
        described = []
        for layer in layers:
            digest, size = str(self.registry.put_blob(layer.content)), len(layer.content)
            described.append(
                documents.tar_layer(layer.path, digest, size)
                if layer.is_tar
                else documents.model_layer(layer.path, digest, size, mode=layer.mode, mtime=layer.mtime)
            )
        config = documents.model_config(described)
        pointer = {"digest": str(self.registry.put_blob(config)), "size": len(config)}
        manifest = documents.to_json(documents.model_manifest(pointer, described))
        return self.registry.put_manifest(REPOSITORY, tag, manifest)

    def mount(self, place: Path, reference: str = "") -> list[Progress]:
        """Mounts, waiting as long as it takes; the steps before the end."""
        place.mkdir(exist_ok=True)
        *steps, row = self.lending.mount(reference or self.reference, place, lambda: False)
        assert isinstance(row, VolumeRow)
        return [step for step in steps if isinstance(step, Progress)]

    def open(self, digest: Digest, wait: float) -> str:
        return self.lending.open(self.repository, digest, self.reference, wait)


@contextmanager
def desk(root: Path, registry: FakeRegistry, backend: str, *, links: bool = False) -> Iterator[Desk]:
    """A life of all these rooms, but the registry; whatever is mounted at the end stays, as after a daemon's."""
    with ExitStack() as life:
        store = life.enter_context(Store(root / "store"))
        client = life.enter_context(Client(Hosts(root / "certs.d"), Credentials(None)))
        lendings: list[Lending] = []

        def sources(content: Content) -> Sequence[Repository]:
            if content.source:
                return [Repository.parse(content.source)]
            return [row.repository for row in lendings[0].find(None) if content.id in row.contents]

        fetcher = Fetcher(store, client, sources, connections=4, per_host=4, stall=5)
        opener = Opener(store, client, "amd64")
        places: Places = Links() if links else Binds()
        shown: Backend = Complete()
        if backend == "directory":
            shown = Directory(store, lambda volume: opener.tree(volume.id), places)
        run = root / "run"
        table = MountTable(shown, run / "volumes", store.catalog.opened_through, store.catalog.set_opened_through)
        lending = Lending(store, opener, fetcher, table, places, prefetch=False, stall=20)
        lendings.append(lending)
        life.enter_context(fetcher)
        life.enter_context(lending)
        yield Desk(registry, store, table, lending, run)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(_THREADS)]
    assert left == [], "threads left"


@contextmanager
def cleared(root: Path) -> Iterator[FakeRegistry]:
    """A registry for several lives of a desk below `root`; at the end nothing may be mounted there but what a life leaves."""
    with settled(root), FakeRegistry() as registry:
        yield registry
        unmount_below(root)
