"""The composition root: settings become rooms, one inside the other, and end in reverse order.

What a room needs is there before it, and the socket appears last, when everything behind it answers. The order at start: store
(locked, swept), probe, gate, mounts adopted, snapshots, façade, health, socket. Volumes stay mounted when the daemon ends.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from modelvold.config import Config
from modelvold.errors import Failing, Unsupported
from modelvold.facade import Facade
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.lending import Lending
from modelvold.lending.report import VolumeReport
from modelvold.lending.status import Status
from modelvold.mount.gate import Gate
from modelvold.mount.lazy import Lazy
from modelvold.mount.probe import probe
from modelvold.mount.table import MountTable
from modelvold.oci.reference import Repository
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.rpc.control import control_door
from modelvold.rpc.health import Health
from modelvold.rpc.server import Server
from modelvold.rpc.snapshots import snapshots_door
from modelvold.snapshot.snapshotter import Snapshotter
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.opener import Opener

log = logging.getLogger(__name__)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: A gate that has not gone round for this long is no longer alive.
_GATE_SILENCE = 10.0


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status. Raises Failure when it cannot start."""
    if os.geteuid() != 0:
        raise Unsupported(
            "modelvold serve needs root: it mounts and asks the kernel for events",
            "run it as root, or by its systemd unit",
        )
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    _raise_descriptor_limit()
    with ExitStack() as house:
        _build(config, house)
        _notify("READY=1")
        log.info("ready address=%s root=%s", config.address, config.store.root)
        ending.wait()
        log.info("stop reason=signal")
        _notify("STOPPING=1")
    return 0


def _build(config: Config, house: ExitStack) -> None:
    root, runs = config.store.root, config.run
    listen = str(config.facade.listen) if config.facade.listen else ""
    try:
        runs.mkdir(parents=True, exist_ok=True, mode=0o711)
        store = house.enter_context(Store(root))
    except OSError as error:
        raise Failing(
            f"{error.filename or root}: {error.strerror}", "see --root and --run, and that their disk has room"
        ) from error
    findings = probe(root, runs)
    if not findings.is_lazy_possible:
        raise Unsupported(
            f"this machine cannot mount lazily: {findings.reason}",
            "it takes root, Linux 6.18 with fanotify permissions and file-backed EROFS, and a store on ext4, XFS or btrfs",
        )
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    client = house.enter_context(
        Client(Hosts(config.registry.hosts_dir), Credentials(config.docker_config), facade=listen or None)
    )
    desk: list[Lending] = []
    fetcher = Fetcher(
        store,
        client,
        lambda content: _sources(desk[0], content),
        workers=config.fetch.connections,
        stall=min(20.0, config.fetch.deadline),
    )
    gate = house.enter_context(Gate(fetcher, deadline=config.fetch.deadline))
    store.watch(gate)
    backend = Lazy(gate, root / "content", runs / "store")
    table = MountTable(backend, runs / "volumes", store.catalog.opened_through, store.catalog.set_opened_through)
    opener = Opener(store, client, architecture)
    lending = Lending(store, opener, fetcher, table, prefetch=config.fetch.prefetch, stall=config.fetch.deadline)
    desk.append(lending)
    house.enter_context(fetcher)
    house.enter_context(lending)
    snapshotter = Snapshotter(root, store.database, lending, store.catalog)
    lending.ask_users_of(lambda volume: [info.name for info in snapshotter.users_of(volume)])
    status = Status(
        store,
        lending,
        table,
        gate,
        facade=listen,
        prefetch=config.fetch.prefetch,
        backend_reason="seen working at start",
    )
    if config.facade.listen:
        house.enter_context(
            Facade((config.facade.listen.host, config.facade.listen.port), client, store.catalog, architecture)
        )
    if config.metrics.listen:
        where = config.metrics.listen
        house.enter_context(Health(where.host, where.port, lambda: _is_alive(gate), lambda: str(store.failing or "")))
    house.enter_context(Server(config.address, [snapshots_door(snapshotter), control_door(_Operator(lending, status))]))


class _Operator:
    """rpc.control's Operator: the desk, with reports for answers."""

    def __init__(self, lending: Lending, status: Status) -> None:
        self._lending = lending
        self._status = status
        self.report = status.report
        self.unmount = lending.unmount
        self.pull = lending.pull
        self.remove = lending.remove

    def mount(self, reference: str, directory: Path) -> VolumeReport:
        return self._status.volume(self._lending.mount(reference, directory))


def _sources(lending: Lending, content: Content) -> list[Repository]:
    """Where a content may be fetched from: its own source, or the repositories of the volumes that share it."""
    if content.source:
        return [Repository.parse(content.source)]
    return list(dict.fromkeys(row.repository for row in lending.find(None) if content.id in row.contents))


def _is_alive(gate: Gate) -> bool:
    return time.monotonic() - gate.beat < _GATE_SILENCE


def _raise_descriptor_limit() -> None:
    """Each waiting read is one descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _notify(state: str) -> None:
    """systemd's notify protocol (sd_notify(3)); nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(state.encode())
