"""A node whose daemon is killed in the middle of what it is asked: by operators, by containerd, by who reads.

What is asked brings about a state, and says nothing of how much of it was there already: so it can be asked again after the daemon died in
the middle. What is raised when it does is for the caller, who sees by `has_died` whether it was that.
"""

from __future__ import annotations

import http.client
import io
import random
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from modelvold.errors import NotFound, Refused
from modelvold.lending.report import Report
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest, parse
from modelvold.oci.modelpack import read
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import synthesize
from modelvold.rpc.control import ControlClient
from modelvold.volume.opener import volume_id

from tests.fault.killer import Board
from tests.fault.remains import Sources, part_of
from tests.fault.tally import Tally
from tests.lab import documents
from tests.lab.backends import FUSE, LAZY, Backend
from tests.lab.content import Content, Generated, digest_of, size_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.reader import Answer, Piece, Reader, random_pieces
from tests.lab.registry import Registry
from tests.lab.services import Snapshots
from tests.lab.snapshots import Pull

_MIB = 1 << 20
#: Room for the first two models, and not for the last two.
QUOTA = 64 * _MIB


@dataclass(frozen=True, slots=True)
class Model:
    """`files` is what its tree holds; `reference` names it, `volume` is its id on a node, and `blobs` are its layers by digest."""

    reference: str
    volume: str
    manifest: bytes = field(repr=False)
    files: Mapping[str, Content] = field(repr=False)
    blobs: Sources = field(repr=False)


def push(registry: Registry, host: str = "") -> dict[str, Model]:
    """Three models, in references at `host` if that is another way to the registry: `one` of raw layers and a tar, `two` shares its
    largest layer from another repository, `three` is alone. Between them contents of one segment and of several, of whole blocks and not.
    """
    shared = Generated(20 * _MIB + 513, 1)
    inside = {
        "t/large.bin": Generated(17 * _MIB + 1, 2),
        "t/small.json": Generated(300, 3),
        "t/even.bin": Generated(_MIB, 4),
    }
    one: dict[str, Content] = {
        "config.json": b'{"model": 1}',
        "weights/a.bin": shared,
        "weights/b.bin": Generated(3 * _MIB + 7, 5),
    }
    two: dict[str, Content] = {"weights/a.bin": shared, "weights/c.bin": Generated(18 * _MIB + 4096, 6)}
    three: dict[str, Content] = {
        "weights/d.bin": Generated(33 * _MIB + 100, 7),
        "weights/e.bin": Generated(5 * _MIB, 8),
    }
    return {
        "one": _pushed(registry, host or registry.host, "models/one", one, inside),
        "two": _pushed(registry, host or registry.host, "models/two", two),
        "three": _pushed(registry, host or registry.host, "models/three", three),
    }


def _pushed(
    registry: Registry,
    host: str,
    repository: str,
    raw: Mapping[str, Content],
    inside: Mapping[str, Generated] | None = None,
) -> Model:
    push = registry.push
    blobs: dict[str, Content] = {digest_of(content): content for content in raw.values()}
    layers = []
    for path, content in raw.items():
        described = push.described(repository, content)
        layers.append(documents.model_layer(path, described["digest"], described["size"]))
    if inside:
        tar = _tar(inside)
        described = push.described(repository, tar)
        layers.append(documents.tar_layer("", described["digest"], described["size"]))
        blobs[described["digest"]] = tar
    manifest = documents.model_manifest(push.described(repository, documents.model_config(layers)), layers)
    digest = Digest.parse(push.manifest(repository, "v1", manifest))
    place = f"{host}/{repository}"
    volume = volume_id(Repository.parse(place), digest)
    return Model(f"{place}:v1", volume, documents.to_json(manifest), {**raw, **(inside or {})}, blobs)


def _tar(files: Mapping[str, Generated]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = content.size
            tar.addfile(entry, io.BytesIO(content.at(0, content.size)))
    return buffer.getvalue()


class Node:
    """A daemon with a board, and with readers that keep their descriptors and mappings from one read to the next, whoever dies."""

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        models: Mapping[str, Model],
        board: Board,
        tally: Tally,
        image: Path | None = None,
        backend: Backend = LAZY,
    ) -> None:
        """`image`: of the disk whose power the board may order to be cut."""
        self.registry = registry
        self.models = models
        self.board = board
        self.tally = tally
        self.backend = backend
        self._here = folder / "mnt"
        self._readers: dict[str, Reader] = {}
        self._asked: dict[str, list[Piece]] = {}  # and not heard
        self._is_clean = True
        self.daemon = Daemon(
            folder / "daemon",
            {
                "fetch": {"prefetch": False, "connections": 4},
                "store": {"quota": f"{QUOTA >> 20} MiB"},
                "mount": backend.setting,
            },
            python=board.python(image),
        )
        registry.write_hosts(self.daemon.hosts_dir, facade=self.daemon.facade)

    @property
    def root(self) -> Path:
        return self.daemon.root

    @property
    def own_mount(self) -> Path:
        """The one that there is without a volume."""
        return self.daemon.run / ("fuse" if self._is_patient else "store")

    @property
    def _is_patient(self) -> bool:
        """Whether who reads missing bytes waits for the next daemon. Else it is EIO when there is none."""
        return self.backend is FUSE

    @property
    def sources(self) -> Sources:
        return {digest: content for model in self.models.values() for digest, content in model.blobs.items()}

    # -- its lives

    def begin(self) -> None:
        """What follows finds an empty store and a running daemon, whatever a test that failed has left."""
        if not self._is_clean:
            self._take_down()
            shutil.rmtree(self.root)
            self.daemon.start()
        self._is_clean = False

    def end(self) -> None:
        """What began has left nothing."""
        self._is_clean = True

    @property
    def has_died(self) -> bool:
        """By an order of the board, and nobody has buried it."""
        return self.board.is_done

    def bury(self) -> None:
        """The daemon has come to its end."""
        self.daemon.kill9()
        self.board.cancel()
        self.tally.kill()

    def start_again(self) -> None:
        self.daemon.start()
        self.tally.restart()

    def restart(self) -> None:
        """In order; or as far as it comes."""
        self.daemon.stop()
        if not self.has_died:
            self.daemon.start()

    def restart_while_reading(self, name: str) -> None:
        """Killed while it fetches for a reader, and started."""
        self._ask(name, self._pieces(name))
        time.sleep(random.uniform(0.005, 0.1))
        self.daemon.kill9()
        if not self._is_patient:
            self._hear(name, may_be_denied=True)
        if not self.has_died:
            self.daemon.start()
        if self._is_patient:
            self._hear(name)

    # -- as who reads

    def read(self, name: str, share: float = 1.0, *, may_be_denied: bool = False) -> None:
        """Of every file, in random pieces and order; a `share` of them."""
        pieces = self._pieces(name)
        self._ask(name, pieces[: max(1, int(share * len(pieces)))])
        self._hear(name, may_be_denied=may_be_denied)

    def read_without_daemon(self) -> None:
        """What is mounted: it may be EIO; or it is waited for, until the next `read_all`."""
        if not self._is_patient:
            self.read_all(may_be_denied=True)
            return
        for name in self._readers:
            if name not in self._asked:
                self._ask(name, self._pieces(name))

    def read_all(self, *, may_be_denied: bool = False) -> None:
        """Of all that is mounted, whoever mounted it: by those who have it open already, or by somebody new."""
        for name in list(self._asked):
            self._hear(name, may_be_denied=may_be_denied)
        points = {mount.point for mount in mounted(self.daemon.run)}
        for name, model in self.models.items():
            if str(at := self.daemon.run / "volumes" / model.volume) not in points:
                continue
            pieces = self._pieces(name)
            with ExitStack() as new:
                reader = self._readers.get(name) or new.enter_context(Reader([at / path for path in model.files]))
                self._check(name, pieces, reader.read(pieces), may_be_denied=may_be_denied)

    def _ask(self, name: str, pieces: list[Piece]) -> None:
        if name in self._asked:
            self._hear(name)
        self._reader(name).ask(pieces)
        self._asked[name] = pieces

    def _hear(self, name: str, *, may_be_denied: bool = False) -> None:
        """What was asked. Raises TimeoutError once the daemon has died for which it waits; it is to be heard later."""
        reader = self._readers[name]
        while self._is_patient and not reader.has_answered(0.05):
            if self.has_died:
                raise TimeoutError(f"{name} waits for the next daemon")
        self._check(name, self._asked.pop(name), reader.answers(), may_be_denied=may_be_denied)

    def _pieces(self, name: str) -> list[Piece]:
        return random_pieces(random.Random(), [size_of(content) for content in self.models[name].files.values()], 2)

    def _check(self, name: str, pieces: Sequence[Piece], answers: Sequence[Answer], *, may_be_denied: bool) -> None:
        contents = list(self.models[name].files.values())
        _, denied = self.tally.read(pieces, answers, lambda file, at, length: part_of(contents[file], at, length))
        assert may_be_denied or self.has_died or not denied, f"EIO from a daemon that lives: {denied}"

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            reader = Reader([self._place(name) / path for path in self.models[name].files])
            self._readers[name] = reader.__enter__()
        return self._readers[name]

    def _let_go(self, name: str) -> None:
        self._asked.pop(name, None)
        if reader := self._readers.pop(name, None):
            reader.__exit__(None, None, None)

    # -- as an operator

    def report(self) -> Report:
        with self._control() as control:
            return control.report()

    def mount(self, name: str) -> None:
        with self._control() as control, suppress(Refused):  # it is mounted there already
            for _ in control.mount(self.models[name].reference, self._place(name)):
                pass

    def unmount(self, name: str) -> None:
        self._let_go(name)
        with self._control() as control, suppress(NotFound):
            control.unmount(self._place(name))

    def pull(self, name: str, patience: float = 60.0) -> bool:
        """Whether every byte was there and verified within so many seconds."""
        end = time.monotonic() + patience
        with self._control() as control, closing(control.pull(self.models[name].reference)) as steps:
            return any(step.done for step in takewhile(lambda _: time.monotonic() < end, steps))

    def remove(self, name: str) -> None:
        with self._control() as control, suppress(NotFound):
            control.remove(self.models[name].reference)

    # -- as containerd

    def ask_facade(self, name: str) -> None:
        """containerd resolves: the façade gives a synthetic image."""
        repository = self.models[name].reference.partition("/")[2].removesuffix(":v1")
        connection = http.client.HTTPConnection(self.daemon.facade, timeout=30)
        try:
            connection.request("GET", f"/v2/{repository}/manifests/v1?ns={self.registry.host}")
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, said

    def pull_by_containerd(self, name: str) -> None:
        """containerd unpacks: the layer is claimed, and is there."""
        with self._snapshots() as snapshots:
            try:
                snapshots.prepare(f"extract {name}", labels=self._pulled(name).labels)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
            else:
                raise AssertionError("a model's layer was to be unpacked")
            assert snapshots.stat(self._pulled(name).target).name

    def use(self, name: str, key: str) -> Path:
        """A pod gets it; where the volume is mounted."""
        with self._snapshots() as snapshots:
            with suppress(grpc.RpcError):  # it was prepared already; else the mounts are not there either
                snapshots.prepare(key, self._pulled(name).target)
            (mount, *_) = snapshots.mounts(key)
        return Path(mount.source)

    def give_back(self, *keys: str) -> None:
        with self._snapshots() as snapshots:
            for key in keys:
                snapshots.remove(key)

    def collect(self) -> None:
        """containerd's garbage collection."""
        with self._snapshots() as snapshots:
            snapshots.cleanup()

    def target(self, name: str) -> str:
        return self._pulled(name).target

    def _pulled(self, name: str) -> Pull:
        model = self.models[name]
        manifest = parse(model.manifest, name)
        assert isinstance(manifest, Manifest)
        repository = Repository.parse(model.reference.removesuffix(":v1"))
        return Pull(model.reference, synthesize(repository, read(manifest, name)), manifest.digest)

    def _place(self, name: str) -> Path:
        place = self._here / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _take_down(self) -> None:
        for name in list(self._readers):
            self._let_go(name)
        self.daemon.kill9()
        unmount_below(self._here)
        unmount_below(self.daemon.run)

    def _control(self) -> ControlClient:
        return ControlClient(self.daemon.socket)

    def _snapshots(self) -> Snapshots:
        return Snapshots(self.daemon.socket)

    def __enter__(self) -> Self:
        try:
            self.daemon.start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            error.add_note(self.daemon.log_text()[-4000:])
        self.daemon.stop()
        self._take_down()
