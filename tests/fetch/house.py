"""Where fetching is shown: a registry, perhaps with mirrors before it, a client, a store, and a fetcher of four workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.fetch.fetcher import Fetcher
from modelvold.layer.extent import CHUNK
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.hosts import Hosts
from modelvold.store.content import Content
from modelvold.store.room import Bounds, Lease
from modelvold.store.segment import Segment
from modelvold.store.showing import Verify
from modelvold.store.store import Store

from tests.fakes.registry import Auth, FakeRegistry, generated
from tests.lab.program import wait_until
from tests.store.keeping import Notes, add

SEGMENTS = 6
SIZE = SEGMENTS * CHUNK - 1000
DATA = generated(SIZE, seed=3).read(0, SIZE)
#: As long as DATA, and in no byte the same.
WRONG = bytes(byte ^ 0xFF for byte in DATA)
WORKERS = 4


@dataclass
class House:
    """`registry` is the last of the hosts, those before it are its mirrors."""

    folder: Path
    registry: FakeRegistry
    mirrors: Sequence[FakeRegistry]
    store: Store
    client: Client
    fetcher: Fetcher
    notes: Notes

    def add(self, data: bytes = DATA, size: int = CHUNK) -> Content:
        """A content that all the hosts have."""
        digest = Digest.of(data)
        for host in (self.registry, *self.mirrors):
            host.put_blob(data, digest)
        return add(self.store, data, size, source=str(self.repository), digest=digest)

    def log_in(self, password: str = "secret") -> None:
        self.client.remember(self.repository, BasicCredentials("user", password))

    @property
    def repository(self) -> Repository:
        return Repository.parse(f"{self.registry.address}/models/tiny")

    @property
    def ranges(self) -> list[str]:
        return [request.range for request in self.registry.requests if request.is_blob]


@contextmanager
def house(
    folder: Path,
    *,
    mirrors: int = 0,
    auth: Auth | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008 — a frozen value
    verify: Verify = Verify.SERVE,
    stall: float = 5,
    per_host: int = WORKERS,
    bandwidth: int | None = None,
) -> Iterator[House]:
    """No thread outlives it."""
    threads = set(threading.enumerate())
    with ExitStack() as life:
        registry = life.enter_context(FakeRegistry(auth=auth))
        before = [life.enter_context(FakeRegistry()) for _ in range(mirrors)]
        _write_hosts(folder / "certs.d", registry, before)
        store = life.enter_context(Store(folder / "store", bounds, verify))
        client = life.enter_context(Client(Hosts(folder / "certs.d"), Credentials(None)))
        notes = Notes(store)
        store.watch(notes)
        fetcher = Fetcher(
            store,
            client,
            lambda content: [Repository.parse(content.source)],
            connections=WORKERS,
            per_host=per_host,
            stall=stall,
            bandwidth=bandwidth,
        )
        store.serve(_Above(fetcher))
        life.enter_context(fetcher)
        yield House(folder, registry, before, store, client, fetcher, notes)
        for host in (registry, *before):
            host.ending.set()  # a hung answer ends
    assert set(threading.enumerate()) == threads


def bytes_of(content: Content) -> bytes:
    try:
        return _read(content)
    except FileNotFoundError:  # it is verified first, and then moved to the shared place
        wait_until(lambda: not content.source, 10)
        return _read(content)


def _read(content: Content) -> bytes:
    return b"".join(segment.path.read_bytes()[: segment.length] for segment in content.segments)


def until(true: Callable[[], bool]) -> None:
    assert wait_until(true, 20)


class _Above:
    """What the store asks of the rooms above (store.ports.Above)."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.start_over = fetcher.start_over

    def leases(self) -> Mapping[int, Lease]:
        return {}

    def on_wrong(self, segments: Sequence[Segment]) -> None:
        """Nobody has read them."""


def _write_hosts(root: Path, registry: FakeRegistry, mirrors: Sequence[FakeRegistry]) -> None:
    if mirrors:
        file = root / f"{registry.address.replace(':', '_')}_" / "hosts.toml"
        file.parent.mkdir(parents=True)
        tables = "".join(f'[host."{mirror.origin}"]\n' for mirror in mirrors)
        file.write_text(f'server = "{registry.origin}"\n{tables}')
