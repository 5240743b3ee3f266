"""The remote protocol: models' layers, who sees them, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from modelvold.errors import Unreachable
from modelvold.rpc.gen import snapshots_pb2
from modelvold.snapshot.models import LONGEST_WAIT, MOST_WAITING

from tests.lab.services import Snapshots
from tests.lab.snapshots import SnapshotsLab, mounted, names, refused, settled_lab

COMMITTED = snapshots_pb2.COMMITTED
IMAGE_VOLUME = "k8s.io/43//run/containerd/io.containerd.grpc.v1.cri/image-volumes/sandbox/abc"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SnapshotsLab]:
    with settled_lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def client(lab: SnapshotsLab) -> Snapshots:
    return lab.client


def test_a_models_layer_is_there_at_once(lab: SnapshotsLab, client: Snapshots) -> None:
    pull = lab.shelf.give("registry.example/a/model")
    assert "stands for a model" in refused(
        grpc.StatusCode.ALREADY_EXISTS, client.prepare, "k8s.io/1/extract-1 x", "", pull.labels
    )
    (asked,) = lab.shelf.opened
    assert asked == (
        lab.shelf.given[pull.synthetic.manifest_digest].repository,
        pull.original,
        pull.image,
        LONGEST_WAIT,
    )
    # What containerd looks for next, in its own words.
    (found,) = client.list(f'labels."containerd.io/snapshot.ref"=={pull.target},parent==""')
    assert (found.name, found.kind, found.parent) == (pull.target, COMMITTED, "")
    assert dict(found.labels) == pull.labels
    assert client.usage(pull.target) == (0, 0)
    refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, "k8s.io/2/extract-2 x", "", pull.labels)
    assert len(lab.shelf.opened) == 1
    assert [info.name for info in client.list()] == [pull.target]


def test_who_uses_a_model_sees_its_volume(lab: SnapshotsLab, client: Snapshots) -> None:
    pull = lab.shelf.give("registry.example/a/model")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, "extract", "", pull.labels)
    volume = lab.shelf.folder / pull.original.hex
    weights = (volume / "model.bin").read_bytes()
    for found in (client.prepare(IMAGE_VOLUME, pull.target), client.view("v", pull.target)):
        (mount,) = found
        assert (mount.type, mount.source) == ("bind", str(volume))
        assert list(mount.options) == ["ro", "rbind", "nosuid", "nodev"]
        with mounted(found, lab.root / "at") as at:
            assert (at / "model.bin").read_bytes() == weights
            with pytest.raises(OSError, match="Read-only file system"):
                (at / "model.bin").write_bytes(b"")
    with mounted(client.prepare("rootfs", pull.target), lab.root / "at") as at:
        (at / "model.bin").write_bytes(b"mine")
        (at / "more").touch()
    assert (volume / "model.bin").read_bytes() == weights
    assert names(volume) == {"model.bin"}
    assert [info.name for info in lab.snapshotter.users_of(pull.original.hex)] == [
        "rootfs",
        "v",
        IMAGE_VOLUME,
        pull.target,
    ]
    lab.restart()
    with mounted(lab.client.mounts(IMAGE_VOLUME), lab.root / "at") as at:
        assert (at / "model.bin").read_bytes() == weights


def test_labels_that_prove_nothing_ask_nobody(lab: SnapshotsLab, client: Snapshots) -> None:
    mine, theirs = lab.shelf.give("registry.example/mine/m"), lab.shelf.give("registry.example/theirs/m", "secret")
    stolen = mine.labels | {label: theirs.labels[label] for label in mine.labels if "modelvold" in label}
    text = refused(grpc.StatusCode.FAILED_PRECONDITION, client.prepare, "extract", "", stolen)
    assert "registry.example/theirs/m@" in text
    assert (
        "names the façade, remove the image and pull it again" in text or "enable_remote_snapshot_annotations" in text
    )
    foreign = mine.labels | {"containerd.io/snapshot/cri.manifest-digest": "sha256:" + "0" * 64}
    assert "façade" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.prepare, "extract", "", foreign)
    lab.layer("base", "", lambda _: None)
    assert "only one" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.prepare, "extract", "base", mine.labels)
    assert lab.shelf.opened == []
    assert [info.name for info in client.list()] == ["base"]


def test_an_ordinary_layers_target_is_prepared_as_any_other(client: Snapshots) -> None:
    labels = {"containerd.io/snapshot.ref": "sha256:abc"}
    assert client.prepare("extract-1 sha256:abc", "", labels)[0].type == "bind"
    client.commit("sha256:abc", "extract-1 sha256:abc", labels)
    assert dict(client.stat("sha256:abc").labels) == labels


def test_no_container_sees_an_empty_model(client: Snapshots) -> None:
    for ask in (client.prepare, client.view):
        text = refused(grpc.StatusCode.FAILED_PRECONDITION, ask, IMAGE_VOLUME)
        assert "around the façade" in text
        assert "would be empty" in text
        assert "pull it again" in text
    assert client.list() == []


def test_what_keeps_a_model_from_opening_is_said(lab: SnapshotsLab, client: Snapshots) -> None:
    pull = lab.shelf.give("registry.example/a/model")

    def fail() -> None:
        raise Unreachable("registry.example: connection refused", "start it")

    lab.shelf.opening = fail
    text = refused(grpc.StatusCode.UNAVAILABLE, client.prepare, "extract", "", pull.labels)
    assert text == "registry.example: connection refused; start it"
    lab.shelf.opening = lambda: 1 / 0
    assert "division by zero" in refused(grpc.StatusCode.INTERNAL, client.prepare, "extract", "", pull.labels)
    lab.shelf.opening = lambda: None
    refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, "extract", "", pull.labels)
    assert len(lab.shelf.opened) == 3


class _Held:
    """Keeps every `open` waiting until it is let go; says when so many wait."""

    def __init__(self, lab: SnapshotsLab) -> None:
        self._go = threading.Event()
        self._arrived = threading.Semaphore(0)
        lab.shelf.opening = self._wait

    def _wait(self) -> None:
        self._arrived.release()
        assert self._go.wait(60)

    def arrive(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._arrived.acquire(timeout=60)

    def let_go(self) -> None:
        self._go.set()


def test_one_target_is_opened_once(lab: SnapshotsLab, client: Snapshots) -> None:
    pull = lab.shelf.give("registry.example/a/model")
    held = _Held(lab)
    with ThreadPoolExecutor(8) as callers:
        calls = [
            callers.submit(refused, grpc.StatusCode.ALREADY_EXISTS, client.prepare, f"extract-{n}", "", pull.labels)
            for n in range(8)
        ]
        held.arrive()
        held.let_go()
        for call in calls:
            call.result(timeout=60)
    assert len(lab.shelf.opened) == 1


def test_many_stuck_prepares_stop_nobody_else(lab: SnapshotsLab, client: Snapshots) -> None:
    pulls = [lab.shelf.give(f"registry.example/m{number}/model") for number in range(MOST_WAITING + 1)]
    held = _Held(lab)
    with ThreadPoolExecutor(MOST_WAITING) as callers:
        calls = [
            callers.submit(refused, grpc.StatusCode.ALREADY_EXISTS, client.prepare, f"e{n}", "", pull.labels)
            for n, pull in enumerate(pulls[:-1])
        ]
        try:
            held.arrive(MOST_WAITING)
            text = refused(grpc.StatusCode.UNAVAILABLE, client.prepare, "one too many", "", pulls[-1].labels)
            assert "are being opened already" in text
            lab.layer("ordinary", "", lambda folder: (folder / "x").touch())
            client.cleanup()
            assert [info.name for info in client.list()] == ["ordinary"]
            client.remove("ordinary")
        finally:
            held.let_go()
        for call in calls:
            call.result(timeout=60)
    assert len(client.list()) == MOST_WAITING


def test_cleanup_says_which_volumes_are_used(lab: SnapshotsLab, client: Snapshots) -> None:
    pulls = [lab.shelf.give(f"registry.example/{name}/model", name) for name in ("a", "b")]
    for pull in pulls:
        refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, "extract", "", pull.labels)
    client.prepare(IMAGE_VOLUME, pulls[0].target)
    client.remove(pulls[1].target)
    assert "remove" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, pulls[0].target)
    client.cleanup()
    assert lab.shelf.unmounted == [{pulls[0].original.hex}]


def test_a_volume_that_is_lost_leaves_no_snapshot(lab: SnapshotsLab, client: Snapshots) -> None:
    pull = lab.shelf.give("registry.example/a/model")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, "extract", "", pull.labels)
    lab.shelf.ids.clear()
    assert "not known" in refused(grpc.StatusCode.NOT_FOUND, client.prepare, IMAGE_VOLUME, pull.target)
    assert [info.name for info in client.list()] == [pull.target]
