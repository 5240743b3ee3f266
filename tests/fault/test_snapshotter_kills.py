"""containerd and the daemon, killed at moments that nobody chose while images and models are pulled, used and removed: afterwards both
agree on every snapshot, nothing lies or is mounted that no snapshot names, and all of it works.

The storm: two ordinary images of several layers that share some, and two ModelPack models, each in two namespaces (of CRI, and of `ctr`),
each pulled and removed again and again, all at once; and beside it somebody who prepares and removes on whatever is there.

There is one disagreement that is containerd's own. It commits a snapshot within a transaction of its database: dying between the
snapshotter's answer and the transaction's end, it goes on knowing the key that is no more, "uncommittable" in its words, until the lease
of that pull ends, and does not know the snapshot committed, which its next collection takes away. Such a key is accepted if, and only if,
that snapshot is seen; they are counted.
"""

from __future__ import annotations

import gzip
import io
import random
import re
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from modelvold.rpc.gen import snapshots_pb2

from tests.fault.remains import Sources, look
from tests.fault.tally import Tally
from tests.lab import debian, documents
from tests.lab.containerd import Containerd
from tests.lab.content import Content, Generated, blocks_of, digest_of, size_of
from tests.lab.daemon import Daemon
from tests.lab.metadata import Known, known
from tests.lab.mounts import mounted
from tests.lab.program import wait_until
from tests.lab.registry import Registry
from tests.lab.services import Snapshots

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]

_KIB, _MIB = 1 << 10, 1 << 20
#: In `make check`, and with FAULT_ROUNDS for each round: three rounds are more than fifty.
_FEW, _MANY = 3, 17
#: Seconds until a kill: pulls take a good part of one.
_MOMENT = (0.1, 2.0)
_SNAPSHOTTER = "modelvold"
_CRI, _CTR = "k8s.io", "default"
_KEEP = {"containerd.io/gc.root": "storm"}
_BACKEND_NAME = re.compile(r"(?P<namespace>[^/]+)/\d+/(?P<key>.+)", re.DOTALL)
_ACTIVE, _VIEW, _COMMITTED = snapshots_pb2.ACTIVE, snapshots_pb2.VIEW, snapshots_pb2.COMMITTED
#: What somebody who prepares and removes is told, when another was faster.
_TOO_LATE = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
}


@dataclass(frozen=True)
class Subject:
    """What is pulled. `files` are those to be read of it, by absolute path in a container; of a model, below its mount."""

    reference: str
    files: Mapping[str, Content] = field(repr=False)
    is_model: bool = False


@dataclass
class Stage:
    """`sources` are the models' blobs by digest. `uncommittable` are names of containerd's that cannot be committed any more."""

    registry: Registry
    daemon: Daemon
    containerd: Containerd
    subjects: list[Subject]
    sources: Sources
    tally: Tally
    uncommittable: set[str] = field(default_factory=set)
    toggled: int = 0
    used: int = 0

    # -- what is done

    def toggle(self, namespace: str, subject: Subject, *, is_there: bool) -> None:
        """Raises AssertionError or RpcError when it fails."""
        if namespace == _CRI:
            if is_there:
                self.containerd.cri.remove_image(subject.reference)
            else:
                self.containerd.cri.pull(subject.reference)
            return
        if is_there:
            words = ["rm", "--sync", subject.reference]
        else:
            folder = self.containerd.certificates
            words = ["pull", "--snapshotter", _SNAPSHOTTER, "--hosts-dir", str(folder), subject.reference]
        self.containerd.ctr("images", *words, namespace=namespace)

    def present(self, namespace: str) -> set[str]:
        return set(self.containerd.ctr("images", "ls", "-q", namespace=namespace).split())

    def use(self, ending: threading.Event, order: random.Random) -> None:
        """Prepares, views, and removes of its own, on what is committed."""
        with Snapshots(self.containerd.socket, _SNAPSHOTTER, _CTR) as asked:
            while not ending.is_set():
                try:
                    self._use(asked, order)
                except grpc.RpcError as error:
                    if error.code() not in _TOO_LATE:
                        raise

    def _use(self, asked: Snapshots, order: random.Random) -> None:
        found = asked.list()
        mine = [info.name for info in found if info.kind != _COMMITTED and not info.name.startswith("extract-")]
        below = [info.name for info in found if info.kind == _COMMITTED]
        if mine and (len(mine) > 6 or not below or order.random() < 0.4):
            asked.remove(order.choice(mine))
        elif below:
            parent = order.choice(below)
            form = order.choice(("pod-{}", "view-{}", "/run/cri/image-volumes/sandbox-{}/abc"))
            ask = asked.view if form.startswith("view") else asked.prepare
            ask(form.format(time.monotonic_ns()), parent, _KEEP)
            self.used += 1
        else:
            time.sleep(0.01)

    @contextmanager
    def storm(self, order: random.Random) -> Iterator[None]:
        """The block runs when it has raged for a moment; nothing may have failed before. Behind the block all is still again."""
        ending = threading.Event()
        with ThreadPoolExecutor(2 * len(self.subjects) + 1) as threads:
            try:
                running = [threads.submit(self.use, ending, random.Random(order.random()))]
                for namespace in (_CRI, _CTR):
                    there = self.present(namespace)
                    running += [
                        threads.submit(self._churn, ending, namespace, subject, subject.reference in there)
                        for subject in self.subjects
                    ]
                time.sleep(order.uniform(*_MOMENT))
                failed = [str(job.exception()) for job in running if job.done()]
                assert not failed, failed
                ending.set()
                yield
            finally:
                ending.set()

    def _churn(self, ending: threading.Event, namespace: str, subject: Subject, is_there: bool) -> None:
        while not ending.is_set():
            self.toggle(namespace, subject, is_there=is_there)
            self.toggled += 1
            is_there = not is_there

    def collect(self) -> None:
        """One collection by containerd, in which it looks at us: once it has found us again, where we were away."""

        def soil() -> bool:
            key = f"soil-{time.monotonic_ns()}"
            try:
                with Snapshots(self.containerd.socket, _SNAPSHOTTER, _CTR) as asked:
                    asked.prepare(key, labels=_KEEP)
                    asked.remove(key)
            except grpc.RpcError:
                return False
            return True

        assert wait_until(soil, 20), self.daemon.log_text()[-2000:]
        self.containerd.collect()

    def start_again(self, start: Callable[[], None]) -> None:
        self.tally.kill()
        start()
        self.tally.restart()

    # -- what must be so

    def check_all_is_known(self) -> set[str]:
        """Whatever containerd's database knows, we know: with the kind that its key tells and the same parent. Returns the names of
        those that cannot be committed."""
        ours = self._ours()
        theirs = known(self.containerd, _SNAPSHOTTER)
        names = {(found.namespace, found.key): found.name for found in theirs}
        lost = set()
        for found in theirs:
            if found.name not in ours:
                assert self._is_uncommittable(found, ours, set(names.values())), f"containerd knows {found}; we do not"
                lost.add(found.name)
                continue
            info = ours[found.name]
            assert info.kind == _kind_of(found.key), f"{found}: {info}"
            assert info.parent == (names[found.namespace, found.parent] if found.parent else ""), f"{found}: {info}"
        return lost

    def _is_uncommittable(self, found: Known, ours: Mapping[str, snapshots_pb2.Info], names: set[str]) -> bool:
        """Its key was an unpacked layer's, which we have committed under a name that containerd does not know; or had, and it was seen."""
        if found.name in self.uncommittable:
            return True
        if not found.key.startswith("extract-"):
            return False
        chain = found.key.partition(" ")[2]
        committed = re.compile(rf"{re.escape(found.namespace)}/\d+/{re.escape(chain)}")
        if not any(committed.fullmatch(name) and name not in names for name in ours):
            return False
        self.uncommittable.add(found.name)
        return True

    def check_agreement(self) -> None:
        """After a collection: the same snapshots with the same kinds and parents, by what each answers; in the store nothing else;
        mounted what they name."""
        lost = self.check_all_is_known()
        ours = self._ours()
        theirs = [found for found in known(self.containerd, _SNAPSHOTTER) if found.name not in lost]
        assert set(ours) == {found.name for found in theirs}, "of one snapshot only one of them knows"
        by_key = {(found.namespace, found.key): found for found in theirs}
        answered = {
            (namespace, info.name): info
            for namespace in {found.namespace for found in theirs}
            for info in self._theirs(namespace)
        }
        assert answered.keys() == by_key.keys()
        for key, info in answered.items():
            found = by_key[key]
            assert (info.kind, info.parent) == (ours[found.name].kind, found.parent), info
        self.check_store()

    def check_store(self) -> None:
        """Every row has its folder and no folder is without a row; mounted is what snapshots name, and what is pinned may be."""
        root = self.daemon.root
        with closing(sqlite3.connect(f"file:{root / 'catalog.db'}?mode=ro", uri=True, timeout=30)) as catalog:
            rows = {str(n) for (n,) in catalog.execute("SELECT number FROM snapshots WHERE volume IS NULL")}
            named = {v for (v,) in catalog.execute("SELECT volume FROM snapshots WHERE volume IS NOT NULL")}
            pinned = {v for (v,) in catalog.execute("SELECT id FROM volume WHERE pinned")}
        folders = {path.name for path in (root / "snapshots").iterdir()}
        assert folders == rows | {"removed"}
        assert list((root / "snapshots/removed").iterdir()) == []
        shown = {Path(mount.point).name for mount in mounted(self.daemon.run / "volumes")}
        assert named <= shown <= named | pinned, f"snapshots name {named}, pinned are {pinned}, mounted {shown}"

    def check_all_works(self) -> None:
        """Everything is pulled, run and read."""
        cri = self.containerd.cri
        images = {subject.reference: cri.pull(subject.reference) for subject in self.subjects}
        for subject in self.subjects:
            if subject.reference not in self.present(_CTR):
                self.toggle(_CTR, subject, is_there=False)
        models = [subject for subject in self.subjects if subject.is_model]
        volumes = {f"/model-{number}": images[model.reference] for number, model in enumerate(models)}
        below = {model.reference: f"/model-{number}" for number, model in enumerate(models)}
        pod = cri.run_pod("after")
        for number, subject in enumerate(subject for subject in self.subjects if not subject.is_model):
            container = cri.create_container(pod, images[subject.reference], volumes, name=f"c{number}")
            cri.start(container)
            for read in (subject, *models):
                at = below.get(read.reference, "")
                paths = [f"{at}{path}" for path in read.files]
                ran = cri.exec(container, ["/bin/sha256sum", *paths])
                assert ran.code == 0, ran.stderr
                got = {line.split()[1]: line.split()[0] for line in ran.stdout.decode().splitlines()}
                wanted = {f"{at}{path}": digest_of(content).partition(":")[2] for path, content in read.files.items()}
                assert got == wanted
                self.tally.compared += sum(map(size_of, read.files.values()))
            gone = cri.exec(container, ["/bin/ls", "/layers/2"])
            assert gone.code != 0, "a later layer has removed it"
        cri.remove_pod(pod)
        self.collect()
        self.check_agreement()

    def remove_all(self) -> None:
        """To nothing, in both."""
        for subject in self.subjects:
            self.containerd.cri.remove_image(subject.reference)
        for namespace in (_CRI, _CTR):
            for reference in self.present(namespace):
                self.containerd.ctr("images", "rm", reference, namespace=namespace)
            with Snapshots(self.containerd.socket, _SNAPSHOTTER, namespace) as asked:
                for info in asked.list("kind!=committed"):
                    asked.remove(info.name)
            # Those of pulls that were killed would live for a day.
            for lease in self.containerd.ctr("leases", "ls", "-q", namespace=namespace).split():
                self.containerd.ctr("leases", "rm", lease, namespace=namespace)
        self.collect()
        assert known(self.containerd, _SNAPSHOTTER) == []
        assert self._ours() == {}
        self.check_store()
        for subject in (subject for subject in self.subjects if subject.is_model):
            for words in (["unpin"], ["rm"]):
                ran = self.daemon.cli(*words, subject.reference)
                assert ran.returncode == 0, ran.stderr
        assert mounted(self.daemon.run / "volumes") == []
        assert [path for path in (self.daemon.root / "content").rglob("*") if path.is_file()] == []
        assert list((self.daemon.root / "volumes").iterdir()) == []
        assert [path.name for path in (self.daemon.root / "snapshots").iterdir()] == ["removed"]

    def _ours(self) -> dict[str, snapshots_pb2.Info]:
        with Snapshots(self.daemon.socket, _SNAPSHOTTER) as asked:
            return {info.name: info for info in asked.list()}

    def _theirs(self, namespace: str) -> list[snapshots_pb2.Info]:
        with Snapshots(self.containerd.socket, _SNAPSHOTTER, namespace) as asked:
            return list(asked.list())


def _kind_of(key: str) -> int:
    """A chain's name is committed; the other keys are ours and unpackers'."""
    if key.startswith("sha256:"):
        return int(_COMMITTED)
    return int(_VIEW if key.startswith("view-") else _ACTIVE)


@pytest.fixture
def stage(folder: Path, tally: Tally) -> Iterator[Stage]:
    try:
        debian.containerd(), debian.runc(), debian.busybox()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    with ExitStack() as life:
        registry = life.enter_context(Registry(folder / "registry"))
        images = _push_images(registry)
        models, sources = _push_models(registry)
        daemon = Daemon(folder / "daemon", {"mount": {"backend": "lazy"}}, hosts_dir=folder / "containerd/certs.d")
        containerd = Containerd(folder / "containerd", images[0].reference, daemon.for_containerd)
        containerd.hosts(registry)
        life.enter_context(daemon)
        life.enter_context(containerd)
        yield Stage(registry, daemon, containerd, [*images, *models], sources, tally)
    assert containerd.leftovers == []


def test_containerd_is_killed_while_it_pulls_and_removes(stage: Stage, rounds: int) -> None:
    order = _begin(stage)
    for _ in range(_kills(rounds)):
        with stage.storm(order):
            stage.containerd.kill()
            stage.check_all_is_known()
            stage.start_again(stage.containerd.start)
        stage.collect()
        stage.check_agreement()
    _end(stage)


def test_the_daemon_is_killed_while_containerd_pulls_and_removes(stage: Stage, rounds: int) -> None:
    order = _begin(stage)
    for _ in range(_kills(rounds)):
        with stage.storm(order):
            stage.daemon.kill9()
            look(stage.daemon.root).check(stage.sources, stage.tally)
            stage.start_again(stage.daemon.start)
        stage.check_all_is_known()
        stage.collect()
        stage.check_agreement()
    _end(stage)


def _kills(rounds: int) -> int:
    return _FEW if rounds == 1 else _MANY * rounds


def _begin(stage: Stage) -> random.Random:
    """The order of what happens, when all is there."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    for subject in stage.subjects:
        for namespace in (_CRI, _CTR):
            stage.toggle(namespace, subject, is_there=False)
        if subject.is_model:
            ran = stage.daemon.cli("pin", subject.reference)
            assert ran.returncode == 0, ran.stderr
    stage.collect()
    stage.check_agreement()
    return random.Random(seed)


def _end(stage: Stage) -> None:
    told = f"{stage.toggled} pulls and removals, {stage.used} snapshots on them"
    print(f"{told}, {len(stage.uncommittable)} left uncommittable by containerd")
    stage.check_all_works()
    stage.remove_all()


# -- what is pulled


def _push_images(registry: Registry) -> list[Subject]:
    """Of six and five layers, all but the last two the same ones. In each the last layer removes a folder of the one before."""
    base: list[dict[str, Content]] = [
        {f"/layers/{n}/{k}": Generated(30 * _KIB + n, 10 * n + k) for k in range(20)} for n in range(3)
    ]
    one: list[dict[str, Content]] = [*base, {"/layers/3/a": b"three"}, {"/own/one": Generated(100 * _KIB, 97)}]
    two: list[dict[str, Content]] = [*base, {"/own/two": Generated(_MIB, 98)}]
    return [_push_image(registry, "lab/one", one), _push_image(registry, "lab/two", two)]


def _push_image(registry: Registry, repository: str, layers: list[dict[str, Content]]) -> Subject:
    tars = [documents.busybox_layer(debian.busybox()), *(_tar(files) for files in layers)]
    tars[-1] = _tar(layers[-1], removed=["/layers/2"])
    described = []
    for tar in tars:
        blob = registry.push.described(repository, gzip.compress(tar, 1, mtime=0))
        described.append({**blob, "mediaType": f"{documents.IMAGE_LAYER}+gzip"})
    config = registry.push.described(repository, documents.image_config([digest_of(tar) for tar in tars]))
    registry.push.manifest(repository, "v1", documents.image_manifest(config, described))
    files = {path: content for layer in layers for path, content in layer.items() if "/layers/2/" not in path}
    return Subject(f"{registry.host}/{repository}:v1", files)


def _push_models(registry: Registry) -> tuple[list[Subject], Sources]:
    """One of raw layers, one of a tar."""
    raw: dict[str, Content] = {"config.json": b'{"model": 1}', "weights/a.bin": Generated(3 * _MIB + 7, 1)}
    pushed = registry.push.model(raw, "models/raw")
    inside: dict[str, Content] = {"/t/large.bin": Generated(2 * _MIB + 1, 2), "/t/small.json": b"{}"}
    tar = _tar(inside)
    layer = documents.tar_layer("", **registry.push.described("models/tar", tar))
    config = registry.push.described("models/tar", documents.model_config([layer]))
    registry.push.manifest("models/tar", "v1", documents.model_manifest(config, [layer]))
    models = [
        Subject(pushed.reference, {f"/{path}": content for path, content in raw.items()}, is_model=True),
        Subject(f"{registry.host}/models/tar:v1", inside, is_model=True),
    ]
    sources: dict[str, Content] = {pushed.layers[path]: content for path, content in raw.items()}
    sources[digest_of(tar)] = tar
    return models, sources


def _tar(files: Mapping[str, Content], removed: list[str] | None = None) -> bytes:
    """With whiteouts for what is `removed`, in the form of OCI's layers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size = size_of(content)
            tar.addfile(entry, io.BytesIO(b"".join(blocks_of(content))))
        for path in removed or []:
            above, _, name = path.lstrip("/").rpartition("/")
            tar.addfile(tarfile.TarInfo(f"{above}/.wh.{name}"))
    return buffer.getvalue()
