"""containerd's contract for the ten verbs, case by case as its own suite asks, over a real socket."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from modelvold.rpc.gen import snapshots_pb2

from tests.lab.snapshots import SnapshotsClient, SnapshotsLab, mounted, names, refused, settled_lab

ACTIVE, COMMITTED = snapshots_pb2.ACTIVE, snapshots_pb2.COMMITTED
KEEP = {"containerd.io/gc.root": "here"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SnapshotsLab]:
    with settled_lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def client(lab: SnapshotsLab) -> SnapshotsClient:
    return lab.client


def write(path: Path, text: str, mode: int = 0o777) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_names_and_numbers_are_containerds() -> None:
    """The proto is ours; against itself it would always agree."""
    service = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
    assert service.full_name == "containerd.services.snapshots.v1.Snapshots"
    assert [method.name for method in service.methods] == (
        ["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup"]
    )
    assert service.methods_by_name["Commit"].output_type.full_name == "google.protobuf.Empty"
    assert service.methods_by_name["List"].server_streaming
    numbers = {
        "PrepareSnapshotRequest": "snapshotter 1 key 2 parent 3 labels 4",
        "ViewSnapshotRequest": "snapshotter 1 key 2 parent 3 labels 4",
        "PrepareSnapshotResponse": "mounts 1",
        "ViewSnapshotResponse": "mounts 1",
        "MountsRequest": "snapshotter 1 key 2",
        "MountsResponse": "mounts 1",
        "CommitSnapshotRequest": "snapshotter 1 name 2 key 3 labels 4 parent 5",
        "RemoveSnapshotRequest": "snapshotter 1 key 2",
        "StatSnapshotRequest": "snapshotter 1 key 2",
        "StatSnapshotResponse": "info 1",
        "UpdateSnapshotRequest": "snapshotter 1 info 2 update_mask 3",
        "UpdateSnapshotResponse": "info 1",
        "ListSnapshotsRequest": "snapshotter 1 filters 2",
        "ListSnapshotsResponse": "info 1",
        "UsageRequest": "snapshotter 1 key 2",
        "UsageResponse": "size 1 inodes 2",
        "CleanupRequest": "snapshotter 1",
        "Info": "name 1 parent 2 kind 3 created_at 4 updated_at 5 labels 6",
    }
    messages = snapshots_pb2.DESCRIPTOR.message_types_by_name
    assert {name: " ".join(f"{f.name} {f.number}" for f in m.fields) for name, m in messages.items()} == numbers
    mount = messages["MountsResponse"].fields_by_name["mounts"].message_type
    assert mount.full_name == "containerd.types.Mount"
    assert " ".join(f"{f.name} {f.number}" for f in mount.fields) == "type 1 source 2 target 3 options 4"
    assert dict(snapshots_pb2.Kind.items()) == {"UNKNOWN": 0, "VIEW": 1, "ACTIVE": 2, "COMMITTED": 3}


def test_basic(lab: SnapshotsLab, client: SnapshotsClient) -> None:
    at = lab.root / "at"

    def first(folder: Path) -> None:
        write(folder / "foo", "foo\n")
        (folder / "a/b/c").mkdir(parents=True)

    def second(folder: Path) -> None:
        write(folder / "bar", "bar\n")
        write(folder / "foo", "bar\n")
        shutil.rmtree(folder / "a/b")

    with mounted(client.prepare("preparing", "", KEEP), at):
        first(at)
    client.commit("committed", "preparing", KEEP)
    base = client.stat("committed")
    assert (base.parent, base.kind, dict(base.labels)) == ("", COMMITTED, KEEP)
    refused(grpc.StatusCode.NOT_FOUND, client.stat, "preparing")
    with mounted(client.prepare("next", "committed", KEEP), at):
        assert names(at) == {"foo", "a"}
        second(at)
    assert (client.stat("next").parent, client.stat("next").kind) == ("committed", ACTIVE)
    client.commit("committed-next", "next", KEEP)
    above = client.stat("committed-next")
    assert (above.parent, above.kind) == ("committed", COMMITTED)
    assert client.list() == [base, above]
    with mounted(client.view("view", "committed-next"), at):
        assert (at / "foo").read_text() == (at / "bar").read_text() == "bar\n"
        assert names(at / "a") == set()
    client.remove("view")
    assert "remove" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "committed")
    client.remove("committed-next")
    client.remove("committed")
    assert client.list() == []


def test_the_root_of_nothing_is_0755(lab: SnapshotsLab, client: SnapshotsClient) -> None:
    with mounted(client.prepare("a"), lab.root / "at") as at:
        assert stat.S_IMODE(at.stat().st_mode) == 0o755


def test_a_key_is_taken_once(client: SnapshotsClient) -> None:
    client.prepare("p")
    client.commit("c", "p")
    client.prepare("key", "c")
    for ask in (client.prepare, client.view):
        for name in ("key", "c"):
            assert "exists" in refused(grpc.StatusCode.ALREADY_EXISTS, ask, name, "c")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.commit, "c", "key")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.commit, "key", "key")


def test_kinds_and_parents(client: SnapshotsClient) -> None:
    client.prepare("a")
    client.view("v")
    refused(grpc.StatusCode.NOT_FOUND, client.prepare, "x", "missing")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.prepare, "x", "a")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.view, "x", "v")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.prepare, "")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.commit, "c", "v")
    refused(grpc.StatusCode.NOT_FOUND, client.commit, "c", "missing")
    client.commit("c", "a")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.commit, "d", "c")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.mounts, "c")
    for ask in (client.mounts, client.stat, client.usage):
        refused(grpc.StatusCode.NOT_FOUND, ask, "missing")
    assert [info.name for info in client.list()] == ["c", "v"]


def test_mounts_are_found_again(lab: SnapshotsLab, client: SnapshotsClient) -> None:
    lab.layer("c", "", lambda _: None)
    asked = {"a": client.prepare("a", "c"), "v": client.view("v", "c"), "n": client.prepare("n")}
    assert {key: client.mounts(key) for key in asked} == asked
    lab.restart()
    assert {key: lab.client.mounts(key) for key in asked} == asked


def test_commit_replaces_labels_and_may_choose_a_parent(client: SnapshotsClient) -> None:
    client.prepare("a", "", {"old": "1"})
    client.commit("base", "a", {"new": "1", "empty": ""})
    assert dict(client.stat("base").labels) == {"new": "1"}
    client.prepare("b")
    refused(grpc.StatusCode.NOT_FOUND, client.commit, "top", "b", None, "missing")
    client.commit("top", "b", None, "base")
    assert client.stat("top").parent == "base"
    client.prepare("c", "top")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.commit, "other", "c", None, "base")
    client.commit("same", "c", None, "top")
    assert client.stat("same").parent == "top"


def test_remove_frees_keys_and_names(client: SnapshotsClient) -> None:
    client.prepare("committed-a")
    client.commit("committed-1", "committed-a")
    client.prepare("reuse", "committed-1")
    client.remove("reuse")
    client.view("reuse", "committed-1")
    client.remove("reuse")
    client.prepare("reuse")
    client.remove("committed-1")
    client.commit("committed-1", "reuse")
    client.remove("never was")


def test_a_layer_in_the_middle_stays(client: SnapshotsClient) -> None:
    client.prepare("base")
    client.commit("c-base", "base")
    client.prepare("middle", "c-base")
    client.commit("c-middle", "middle")
    client.prepare("top", "c-middle")
    assert "'top'" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "c-middle")
    for name in ("top", "c-middle", "c-base"):
        client.remove(name)
    assert client.list() == []


def test_update(client: SnapshotsClient) -> None:
    before = time.time_ns()
    client.prepare("c1-a")
    client.commit("c1", "c1-a")
    client.prepare("a1", "c1")
    client.view("v1", "c1")
    for name in ("c1", "a1", "v1"):
        was = client.stat(name)
        assert before <= nanoseconds(was.created_at) == nanoseconds(was.updated_at) <= time.time_ns()
        asked = snapshots_pb2.Info(name=name, parent="ignored", labels={"l1": "v1", "l2": "v2", "l3": "v3"})
        moment = time.time_ns()
        now = client.update(asked)
        assert moment <= nanoseconds(now.updated_at) <= time.time_ns()
        assert (now.created_at, now.parent, now.kind) == (was.created_at, was.parent, was.kind)
        assert dict(now.labels) == dict(asked.labels)
        some = snapshots_pb2.Info(name=name, labels={"l1": "updated", "l4": "v4"})
        assert dict(client.update(some, "labels.l1", "labels.l2").labels) == {"l1": "updated", "l3": "v3"}
        dotted = snapshots_pb2.Info(name=name, labels={"a.b/c": "1"})
        assert client.update(dotted, "labels.a.b/c").labels["a.b/c"] == "1"
        now = client.update(some, "labels")
        assert dict(now.labels) == dict(some.labels)
        for path in ("parent", "kind", "name", "labels.", "labelsx"):
            refused(grpc.StatusCode.INVALID_ARGUMENT, client.update, some, path)
        assert client.stat(name) == now
    refused(grpc.StatusCode.NOT_FOUND, client.update, snapshots_pb2.Info(name="missing"))


def nanoseconds(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000_000 + moment.nanos


def test_times_are_exact_everywhere_and_for_ever(lab: SnapshotsLab, client: SnapshotsClient) -> None:
    client.prepare("a", "", KEEP)
    updated = client.update(snapshots_pb2.Info(name="a", labels={"l": "ä"}))
    assert [updated] == client.list() == [client.stat("a")]
    lab.restart()
    assert [updated] == lab.client.list() == [lab.client.stat("a")]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (['labels."containerd.io/gc.root"==here'], "a-np p a v p-wl a-wl v-wl a-np-wl"),
        (['kind==active,labels."containerd.io/gc.root"==here'], "a-np a a-wl a-np-wl"),
        (['kind==view,labels."containerd.io/gc.root"==here'], "v v-wl"),
        (['kind==committed,labels."containerd.io/gc.root"==here'], "p p-wl"),
        (["name==p", "name==a-np-wl"], "p a-np-wl"),
        (["name==a-wl,labels.l"], "a-wl"),
        (["parent==p"], "a v"),
        (['parent!="",labels."containerd.io/gc.root"==here'], "a v a-wl v-wl"),
        (["labels.l"], "p-wl a-wl v-wl a-np-wl"),
        (["labels.l==2"], "a-wl a-np-wl"),
    ],
)
def test_walk(client: SnapshotsClient, filters: list[str], names: str) -> None:
    client.prepare("a-np", "", KEEP)
    client.prepare("p-tmp")
    client.commit("p", "p-tmp", KEEP)
    client.prepare("a", "p", KEEP)
    client.view("v", "p", KEEP)
    client.prepare("p-wl-tmp")
    client.commit("p-wl", "p-wl-tmp", KEEP | {"l": "1"})
    client.prepare("a-wl", "p-wl", KEEP | {"l": "2"})
    client.view("v-wl", "p-wl", KEEP | {"l": "3"})
    client.prepare("a-np-wl", "", KEEP | {"l": "2"})
    assert sorted(info.name for info in client.list(*filters)) == sorted(names.split())


def test_long_lists_come_in_pieces_and_bad_filters_not_at_all(client: SnapshotsClient) -> None:
    for number in range(101):
        client.view(f"v{number}")
    assert client.batches() == [100, 1]
    assert "filter 'name='" in refused(grpc.StatusCode.INVALID_ARGUMENT, client.list, "name=")
