"""A node with a thousand snapshots and two hundred models: what is asked of the records alone is answered at once, whoever waits for what.

What is asserted of times is the 99th percentile over hundreds of calls, by a client that is connected, on a machine where others run too:
the best of three rounds at most, each with the same registry silent; and where such a machine is so busy that a health check, which asks
nobody, takes longer than usual at the same moments, a verb may too. What the assertion can tell is a verb that waits (for the network, for
whoever opens a model: tens of milliseconds and more), and one whose cost grows with the number of snapshots.
"""

from __future__ import annotations

import gc
import http.client
import io
import math
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelvold.oci.document import Manifest, parse
from modelvold.oci.modelpack import read
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import synthesize

from tests.fakes.registry import Behaviour, FakeRegistry
from tests.lab.content import digest_of
from tests.lab.daemon import Daemon, Settings
from tests.lab.documents import tar_layer
from tests.lab.lister import lists
from tests.lab.mounts import mounted
from tests.lab.program import wait_until
from tests.lab.services import Snapshots
from tests.lab.snapshots import Pull
from tests.system.bad_stage import put_model

pytestmark = [pytest.mark.system, pytest.mark.alone]

_MODELS = 200
_IMAGES = 60
_LAYERS = 5  # of each image
_CONTAINERS = 200
_VIEWS = 100
_SNAPSHOTS = 2 * _MODELS + _IMAGES * _LAYERS + _CONTAINERS + _VIEWS
_REMOVALS = 300
_AT_ONCE = 32
#: Seconds. A List of all has half a megabyte to say, which alone on the machine takes 2.5 ms, 99 of a hundred times less than 4.2.
_BOUNDS = {"Stat": 0.005, "Remove": 0.005, "List of one": 0.005, "List of all": 0.01}
#: What a verb takes of a health check's time, where that is more: they do more than it, and are as often without the core they need.
_BESIDE = 4
_ROUNDS = 3
_BLOBS = "/v2/.*/blobs/.*"
_LABEL = "containerd.io/snapshot"


@dataclass(frozen=True, slots=True)
class Node:
    daemon: Daemon
    registry: FakeRegistry
    asked: Snapshots
    health: health_pb2_grpc.HealthStub

    def ask(self, registry: FakeRegistry, repository: str) -> Pull:
        """As containerd does before it unpacks: the façade gives a synthetic image for the model, and has its manifest from then on."""
        host = registry.address
        home = self.daemon.hosts_dir / f"{host.replace(':', '_')}_"
        home.mkdir(parents=True, exist_ok=True)
        facade = f'[host."http://{self.daemon.facade}"]\n  capabilities = ["pull", "resolve"]\n'
        (home / "hosts.toml").write_text(f'server = "{registry.origin}"\n{facade}')
        connection = http.client.HTTPConnection(self.daemon.facade, timeout=30)
        try:
            connection.request("GET", f"/v2/{repository}/manifests/v1?ns={host}")
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, said
        manifest = parse(registry.manifests[repository, "v1"][0], repository)
        assert isinstance(manifest, Manifest)
        place = f"{host}/{repository}"
        synthetic = synthesize(Repository.parse(place), read(manifest, repository))
        return Pull(f"{place}:v1", synthetic, manifest.digest)

    def pull(self, pull: Pull) -> None:
        """As containerd unpacks: the layer is there."""
        assert self.refused(pull) is grpc.StatusCode.ALREADY_EXISTS

    def refused(self, pull: Pull) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as error:
            self.asked.prepare(f"k8s.io/1/extract-1 {pull.target}", "", pull.labels)
        assert isinstance(error.value, grpc.Call)
        code: grpc.StatusCode = error.value.code()
        return code

    def times(self, ask: Callable[[str], object], arguments: Sequence[str]) -> Sequence[tuple[float, float]]:
        """Seconds of each call, and of a health check behind it; without this process's own garbage collections."""
        found = []
        gc.disable()
        try:
            for argument in arguments:
                began = time.perf_counter()
                ask(argument)
                ended = time.perf_counter()
                self.health.Check(health_pb2.HealthCheckRequest())
                found.append((ended - began, time.perf_counter() - ended))
        finally:
            gc.enable()
        return found

    def volumes(self) -> int:
        return len(mounted(self.daemon.run / "volumes"))

    def remove_all(self) -> None:
        """As containerd's collection does, children first; nothing is left but content."""
        for info in reversed(self.asked.list()):
            self.asked.remove(info.name)
        self.asked.cleanup()
        assert self.asked.list() == []
        assert self.volumes() == 0
        assert [path.name for path in (self.daemon.root / "snapshots").iterdir()] == ["removed"]


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds that a verb took. `share`: of what it may."""

    what: str
    median: float
    p99: float
    share: float

    @classmethod
    def of(cls, what: str, times: Sequence[tuple[float, float]]) -> Self:
        """From each call's seconds, and those of the health check behind it."""
        verb, check = ([each[number] for each in times] for number in (0, 1))
        p99 = _p99(verb)
        return cls(what, statistics.median(verb), p99, p99 / max(_BOUNDS[what], _BESIDE * _p99(check)))

    def __str__(self) -> str:
        return f"{self.what}: median {self.median * 1000:.2f} ms, p99 {self.p99 * 1000:.2f} ms, {self.share:.2f} of what it may"


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    settings: Settings = {"fetch": {"prefetch": False}, "mount": {"backend": "lazy"}, "log": {"level": "info"}}
    with (
        FakeRegistry() as registry,
        Daemon(folder / "d", settings) as daemon,
        Snapshots(daemon.socket, "modelvold") as asked,
        grpc.insecure_channel(f"unix:{daemon.socket}") as channel,
    ):
        yield Node(daemon, registry, asked, health_pb2_grpc.HealthStub(channel))


def test_a_thousand_snapshots_are_answered_for_at_once(
    node: Node, record_property: Callable[[str, object], None]
) -> None:
    """Stat, Remove, and a List of one in 5 ms, a List of all in 15, 99 of a hundred, while a Prepare waits for a registry that accepts
    and says nothing."""
    names = _fill(node)
    assert len(names) == len(node.asked.list()) == _SNAPSHOTS
    assert node.volumes() == _MODELS
    target = f'labels."{_LABEL}.ref"=={names[0]},parent==""'
    best: dict[str, Taken] = {}
    for number in range(_ROUNDS):
        removed = [f"k8s.io/9/removed-{number}-{n}" for n in range(_REMOVALS)]
        for key in removed:
            node.asked.prepare(key)
        with _somebody_waiting(node):
            node.times(node.asked.stat, names[:50])
            for what, times in {
                "Stat": node.times(node.asked.stat, random.sample(names, len(names))),
                "Remove": node.times(node.asked.remove, removed),
                "List of one": node.times(node.asked.list, [target] * 200),
                "List of all": lists(node.daemon.socket, 200).seconds,
            }.items():
                taken = Taken.of(what, times)
                print(taken)
                best[what] = min(best.get(what, taken), taken, key=lambda each: each.share)
        if all(taken.share < 1 for taken in best.values()):
            break
    for what, taken in best.items():
        record_property(f"p99 of {what}, ms", round(taken.p99 * 1000, 2))
    assert [str(taken) for taken in best.values() if taken.share >= 1] == []
    node.remove_all()


def test_thirty_two_pulls_at_once(node: Node) -> None:
    """All of them wait for their registry, every verb is answered meanwhile, and all of them succeed."""
    pulls = [node.ask(node.registry, _tar_model(node.registry, f"at-once/{n}", n)) for n in range(_AT_ONCE)]
    node.registry.behaviour = slow = Behaviour(only=_BLOBS, stall_after=0)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        under_way = [threads.submit(node.pull, pull) for pull in pulls]
        try:
            assert wait_until(lambda: any(request.is_blob for request in node.registry.requests))
            _every_verb(node.asked)
            assert not any(done.done() for done in under_way)
        finally:
            slow.resume.set()
        for done in under_way:
            done.result(60)
    assert {info.name for info in node.asked.list()} == {pull.target for pull in pulls}
    assert node.volumes() == _AT_ONCE
    for number, pull in enumerate(pulls):
        (mount,) = node.asked.view(f"k8s.io/1/view-{number}", pull.target)
        assert (Path(mount.source) / "model.bin").read_bytes() == _weights(number)
    node.remove_all()


def _every_verb(asked: Snapshots) -> None:
    asked.prepare("k8s.io/1/a")
    asked.commit("k8s.io/2/c", "k8s.io/1/a")
    assert asked.prepare("k8s.io/3/b", "k8s.io/2/c") == asked.mounts("k8s.io/3/b")
    asked.view("k8s.io/4/v", "k8s.io/2/c")
    assert asked.label("k8s.io/3/b", f"{_LABEL}/x", "y").labels[f"{_LABEL}/x"] == "y"
    assert asked.stat("k8s.io/4/v").parent == "k8s.io/2/c"
    assert asked.usage("k8s.io/3/b")[1] == 1
    for info in reversed(asked.list()):
        asked.remove(info.name)
    asked.cleanup()
    assert asked.list() == []


def _fill(node: Node) -> list[str]:
    """Models and a pod's image volume on each; images, and containers on them; with the labels that containerd gives. Their names,
    parents first."""
    asked, names = node.asked, []
    for number in range(_MODELS):
        repository = f"scale/model-{number}"
        node.registry.add_model(repository, "v1", {"model.bin": _weights(number), "config.json": b"{}"})
        pull = node.ask(node.registry, repository)
        node.pull(pull)
        key = f"k8s.io/{number}//run/containerd/io.containerd.grpc.v1.cri/image-volumes/{number:064x}/abc"
        asked.prepare(key, pull.target)
        names += [pull.target, key]
    tops = []
    for image in range(_IMAGES):
        digests = [digest_of(f"{image}/{layer}".encode()) for layer in range(_LAYERS)]
        parent = ""
        for layer, digest in enumerate(digests):
            labels = {
                f"{_LABEL}.ref": digest,
                f"{_LABEL}/cri.image-ref": f"registry.example/lab/image-{image}:v1",
                f"{_LABEL}/cri.manifest-digest": digests[0],
                f"{_LABEL}/cri.layer-digest": digest,
                f"{_LABEL}/cri.image-layers": ",".join(digests[layer:]),
            }
            asked.prepare(f"k8s.io/{image}/extract-{layer} {digest}", parent, labels)
            asked.commit(name := f"k8s.io/{image}/{digest}", f"k8s.io/{image}/extract-{layer} {digest}", labels)
            names.append(name)
            parent = name
        tops.append(parent)
    for number in range(_CONTAINERS):
        asked.prepare(name := f"k8s.io/{number}/{number:064x}", tops[number % len(tops)])
        names.append(name)
    for number in range(_VIEWS):
        asked.view(name := f"k8s.io/{number}/view-{number}", tops[number % len(tops)])
        names.append(name)
    return names


def _weights(number: int) -> bytes:
    return b"%d" % number * 1000


def _tar_model(registry: FakeRegistry, repository: str, number: int) -> str:
    """One that cannot be opened without its registry, which is asked for the tar's headers. Its repository."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("model.bin")
        entry.size = len(_weights(number))
        tar.addfile(entry, io.BytesIO(_weights(number)))
    content = buffer.getvalue()
    put_model(registry, repository, [tar_layer("", str(registry.put_blob(content)), len(content))])
    return repository


@contextmanager
def _somebody_waiting(node: Node) -> Iterator[None]:
    """A Prepare waits from before the block until after its end, for a registry that accepts and says nothing."""
    with ThreadPoolExecutor(1) as threads:
        with FakeRegistry() as silent:
            pull = node.ask(silent, _tar_model(silent, "stuck", 1))
            silent.behaviour = Behaviour(hang=True)
            prepared = threads.submit(node.refused, pull)
            assert wait_until(lambda: any(request.is_blob for request in silent.requests))
            yield
            assert not prepared.done(), "nobody waited any more: this machine is too slow for what is measured"
        assert prepared.result(60) is grpc.StatusCode.UNAVAILABLE


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]
