"""The composition root: settings become rooms, one inside the other, and end in reverse order.

What a room needs is there before it, and the socket appears last, when everything behind it answers. The order at start: store
(locked, swept), probe, gate, mounts adopted, snapshots, façade, health, socket. Volumes stay mounted when the daemon ends.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.config import Config
from modelvold.errors import Failing, Unsupported
from modelvold.facade import Facade
from modelvold.fetch.fetcher import Fetcher
from modelvold.lending.lending import Lending
from modelvold.lending.report import Progress, VolumeReport
from modelvold.lending.status import Status
from modelvold.linux import selinux
from modelvold.linux.machine import architecture
from modelvold.linux.notify import Notify
from modelvold.mount.backend import Backend, Volume
from modelvold.mount.directory import Directory, sweep_trees
from modelvold.mount.erofs import Complete
from modelvold.mount.findings import COMPLETE, DIRECTORY, FUSE, LAZY, Findings
from modelvold.mount.fuse.backend import Fuse
from modelvold.mount.fuse.line import Place, retire
from modelvold.mount.fuse.questions import FuseQuestions
from modelvold.mount.gate import Gate
from modelvold.mount.handover import Handover
from modelvold.mount.lazy import Lazy
from modelvold.mount.places import Binds, Links, Places
from modelvold.mount.probe import probe
from modelvold.mount.questions import KernelQuestions, Questions
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
from modelvold.store.room import Bounds
from modelvold.store.showing import Verify
from modelvold.store.store import Store
from modelvold.volume.opener import Opener
from modelvold.volume.tree import Tree

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
    faulthandler.enable()  # where each thread stood, in the log of a daemon that its watchdog ends
    notify = Notify(os.environ)
    with Handover(notify, config.run / "store", config.store.root / "content") as handover, ExitStack() as house:
        gate = _build(config, house, notify, handover)
        gc.collect()
        gc.freeze()  # what is here stays; a model of 700 GB makes objects enough that looking through all of it would be felt
        notify.ready()
        log.info("ready address=%s root=%s", config.address, config.store.root)
        while not ending.wait(None if gate else notify.interval):
            notify.alive()  # the gate's loop does, where there is one
        log.info("stop reason=signal")
        notify.stopping()
    return 0


def _build(config: Config, house: ExitStack, notify: Notify, handover: Handover) -> Gate | None:
    listen = str(config.facade.listen) if config.facade.listen else ""
    store = _store(config, house, is_continued=handover.is_continued)
    with _made("store", store.root, "--root", "`[store] root`"), store.database.lent():
        findings = probe(store.root, config.run, config.mount.backend)
    name, reason = findings.choose(config.mount.backend)
    log.info("choose backend=%s reason=%r", name, reason)
    ours = architecture()
    client = house.enter_context(
        Client(
            Hosts(config.registry.hosts_dir),
            Credentials(config.docker_config),
            facade=listen or None,
            proxies=config.proxies,
        )
    )
    desk: list[Lending] = []
    fetcher = Fetcher(
        store,
        client,
        lambda content: _sources(desk[0], content),
        connections=config.fetch.connections,
        per_host=config.fetch.per_host,
        bandwidth=config.fetch.bandwidth,
        stall=min(20.0, config.fetch.deadline / 3),  # a reader's deadline leaves time for another try, or another host
    )
    if name != LAZY and handover.is_continued:
        handover.give_up(f"the backend is {name} now")
    opener = Opener(store, client, ours)
    places: Places = Binds() if findings.can_bind else Links()
    showing = _Showing(config, house, store, findings, places, lambda volume: opener.tree(volume.id))
    gate, backend = showing.made(name, fetcher, notify, handover, lambda volumes: desk[0].renew(volumes))  # noqa: PLW0108 — it is not there yet
    table = MountTable(backend, config.run / "volumes", store.catalog.opened_through, store.catalog.set_opened_through)
    lending = Lending(
        store,
        opener,
        fetcher,
        table,
        places,
        prefetch=config.fetch.prefetch,
        stall=config.fetch.deadline,
        keep=config.store.keep,
    )
    desk.append(lending)
    house.enter_context(fetcher)
    house.callback(backend.close)
    house.enter_context(lending)
    status = Status(store, lending, table, gate, facade=listen, prefetch=config.fetch.prefetch, backend_reason=reason)
    doors = [control_door(_Operator(lending, status))]
    in_use = {*store.catalog.placed().values()}
    if not config.for_user:
        snapshotter = Snapshotter(store.root, store.database, lending, store.given, lending.lending)
        lending.ask_users_of(lambda volume: [info.name for info in snapshotter.users_of(volume)])
        in_use.update(snapshotter.volumes())
        status.ask_snapshots(snapshotter.counts)
        house.callback(snapshotter.tell_what_stays)
        doors.append(snapshots_door(snapshotter))
    lending.restore(in_use)
    if config.facade.listen:
        where = config.facade.listen
        house.enter_context(Facade((where.host, where.port), client, store.given, ours))
    if config.metrics.listen:
        where = config.metrics.listen
        house.enter_context(Health(where.host, where.port, lambda: _is_alive(gate), lambda: str(store.failing or "")))
    house.enter_context(Server(config.address, doors))
    house.callback(lending.keeping.tell_what_stays)
    # First of all at the end: whoever waits for a registry, here or at a door, waits no more, and nobody is told of a failure.
    house.callback(client.close)
    house.callback(fetcher.stop)
    return gate


def _store(config: Config, house: ExitStack, *, is_continued: bool) -> Store:
    with _made("run folder", config.run, "--run", "XDG_RUNTIME_DIR" if config.for_user else ""):
        config.run.mkdir(parents=True, exist_ok=True, mode=0o700 if config.for_user else 0o711)
    settings = config.store
    with _made("store", settings.root, "--root", "`[store] root`"):
        settings.root.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(settings.root).total
        bounds = Bounds(settings.quota.of(disk), settings.reserve.of(disk))
        store = Store(
            settings.root,
            bounds,
            Verify(settings.verify),
            scrub_every=settings.scrub,
            is_continued=is_continued,
        )
        return house.enter_context(store)


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


@dataclass(frozen=True, slots=True)
class _Showing:
    """What backends are made of."""

    config: Config
    house: ExitStack
    store: Store
    findings: Findings
    places: Places
    tree_of: Callable[[Volume], Tree]

    def made(
        self,
        name: str,
        fetcher: Fetcher,
        notify: Notify,
        handover: Handover,
        on_lost: Callable[[Sequence[str]], None],
    ) -> tuple[Gate | None, Backend]:
        """The backend, behind a gate where it asks for bytes. `on_lost` as of `mount.fuse.backend.Fuse`."""
        if name != DIRECTORY:
            self._sweep_whole()
        if name != FUSE:
            retire(self.config.run)
        if name == LAZY:
            kernel = KernelQuestions(handover)
            gate = self._gate(fetcher, kernel, notify)
            return gate, Lazy(gate, kernel, self.store.root / "content", self.config.run / "store", self._label)
        if name == FUSE:
            asked = FuseQuestions()
            gate = self._gate(fetcher, asked, notify)
            log = (self.config.log.level, self.config.log.format)
            return gate, Fuse(
                gate,
                asked,
                Place(self.config.run, self._label, log),
                self.places,
                self.tree_of,
                deadline=self.config.fetch.deadline,
                beside=Complete(self._label) if self.findings.works(COMPLETE) else None,
                on_lost=on_lost,
            )
        if name == COMPLETE:
            return None, Complete(self._label)
        return None, Directory(self.store, self.tree_of, self.places)

    def _gate(self, fetcher: Fetcher, questions: Questions, notify: Notify) -> Gate:
        gate = self.house.enter_context(
            Gate(fetcher, questions, deadline=self.config.fetch.deadline, on_round=notify.alive)
        )
        self.store.watch(gate)
        return gate

    def _sweep_whole(self) -> None:
        """What lies in whole files is of use to `directory` alone."""
        self.store.withdraw_moved()
        sweep_trees(self.store.root / "volumes", {row.id for row in self.store.catalog.volumes()})

    @property
    def _label(self) -> str:
        return _label(self.config.mount.selinux)


def _label(setting: str) -> str:
    """The SELinux context of volumes. A volume without one could be read by no container, where there is SELinux."""
    if selinux.is_active():
        return setting or selinux.READ_BY_CONTAINERS
    if setting:
        raise Unsupported(f"`[mount] selinux` is {setting!r}, but this kernel has no SELinux policy", "take it out")
    return ""


class _Operator:
    """rpc.control's Operator: the desk, with reports for answers."""

    def __init__(self, lending: Lending, status: Status) -> None:
        self._lending = lending
        self._status = status
        self.report = status.report
        self.unmount = lending.unmount
        self.pull = lending.pull
        self.remove = lending.remove
        self.pin = lending.pin
        self.unpin = lending.unpin
        self.collect = lending.collect
        self.verify = lending.verify

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
