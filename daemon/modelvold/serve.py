"""The composition root: settings become rooms, one inside the other, and end in reverse order.

What a room needs is there before it, and the socket appears last, when everything behind it answers. The order at start: store
(locked, swept), probe, gate, mounts adopted, snapshots, façade, health, socket. Volumes stay mounted when the daemon ends.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from modelvold.config import Config
from modelvold.errors import Failing, Unsupported
from modelvold.facade import Facade
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.lending import Lending
from modelvold.lending.report import Progress, VolumeReport
from modelvold.lending.status import Status
from modelvold.linux.machine import architecture
from modelvold.mount.backend import Backend
from modelvold.mount.directory import Directory, sweep_trees
from modelvold.mount.erofs import Complete
from modelvold.mount.findings import DIRECTORY, LAZY
from modelvold.mount.gate import Gate
from modelvold.mount.lazy import Lazy
from modelvold.mount.places import Binds, Links, Places
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

#: A gate that has not gone round for this long is no longer alive.
_GATE_SILENCE = 10.0


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status. Raises Failure when it cannot start."""
    if os.geteuid() != 0 and not config.for_user:
        raise Unsupported(
            "modelvold serve needs root: it mounts and asks the kernel for events",
            "run it as root, or by its systemd unit; `modelvold serve --user` needs none, and serves you alone",
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
    listen = str(config.facade.listen) if config.facade.listen else ""
    store = _store(config, house)
    with _made("store", store.root, "--root", "`[store] root`"):
        findings = probe(store.root, config.run)
    name, reason = findings.choose(config.mount.backend)
    log.info("choose backend=%s reason=%r", name, reason)
    ours = architecture()
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
    gate = house.enter_context(Gate(fetcher, deadline=config.fetch.deadline)) if name == LAZY else None
    opener = Opener(store, client, ours)
    places: Places = Binds() if findings.can_bind else Links()
    if name == DIRECTORY:
        backend: Backend = Directory(store, lambda volume: opener.tree(volume.id), places)
    else:
        backend = _erofs(config, store, gate)
    table = MountTable(backend, config.run / "volumes", store.catalog.opened_through, store.catalog.set_opened_through)
    lending = Lending(
        store, opener, fetcher, table, places, prefetch=config.fetch.prefetch, stall=config.fetch.deadline
    )
    desk.append(lending)
    house.enter_context(fetcher)
    house.enter_context(lending)
    status = Status(store, lending, table, gate, facade=listen, prefetch=config.fetch.prefetch, backend_reason=reason)
    doors = [control_door(_Operator(lending, status))]
    if not config.for_user:
        snapshotter = Snapshotter(store.root, store.database, lending, store.catalog, lending.lending)
        lending.ask_users_of(lambda volume: [info.name for info in snapshotter.users_of(volume)])
        doors.append(snapshots_door(snapshotter))
    if config.facade.listen:
        where = config.facade.listen
        house.enter_context(Facade((where.host, where.port), client, store.catalog, ours))
    if config.metrics.listen:
        where = config.metrics.listen
        house.enter_context(Health(where.host, where.port, lambda: _is_alive(gate), lambda: str(store.failing or "")))
    house.enter_context(Server(config.address, doors))


def _store(config: Config, house: ExitStack) -> Store:
    with _made("run folder", config.run, "--run", "XDG_RUNTIME_DIR" if config.for_user else ""):
        config.run.mkdir(parents=True, exist_ok=True, mode=0o700 if config.for_user else 0o711)
    with _made("store", config.store.root, "--root", "`[store] root`"):
        return house.enter_context(Store(config.store.root))


@contextmanager
def _made(what: str, folder: Path, flag: str, setting: str) -> Iterator[None]:
    """`folder` is made or opened in the block, as the one that `flag` or `setting` names."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename and Path(error.filename) != folder else ""
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        cure = "make room on its disk" if is_full else f"user {os.geteuid()} must be allowed to write it"
        named = f"{flag} or {setting}" if setting else flag
        raise Failing(f"{what} {folder}{where}: {error.strerror}", f"{cure}, or name another with {named}") from error


def _erofs(config: Config, store: Store, gate: Gate | None) -> Backend:
    """What lies in whole files is of use to `directory` alone."""
    store.withdraw_moved()
    sweep_trees(store.root / "volumes", {row.id for row in store.catalog.volumes()})
    if gate is None:
        return Complete()
    store.watch(gate)
    return Lazy(gate, store.root / "content", config.run / "store")


class _Operator:
    """rpc.control's Operator: the desk, with reports for answers."""

    def __init__(self, lending: Lending, status: Status) -> None:
        self._lending = lending
        self._status = status
        self.report = status.report
        self.unmount = lending.unmount
        self.pull = lending.pull
        self.remove = lending.remove

    def mount(
        self, reference: str, directory: Path, cancelled: Callable[[], bool]
    ) -> Iterator[Progress | VolumeReport]:
        for step in self._lending.mount(reference, directory, cancelled):
            yield step if isinstance(step, Progress) else self._status.volume(step)


def _sources(lending: Lending, content: Content) -> list[Repository]:
    """Where a content may be fetched from: its own source, or the repositories of the volumes that share it."""
    if content.source:
        return [Repository.parse(content.source)]
    return list(dict.fromkeys(row.repository for row in lending.find(None) if content.id in row.contents))


def _is_alive(gate: Gate | None) -> bool:
    return gate is None or time.monotonic() - gate.beat < _GATE_SILENCE


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
