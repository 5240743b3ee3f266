"""containerd's contract for the ten verbs over a real socket: what goes beyond its own suite (tests/conformance)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from modelvold.rpc.gen import snapshots_pb2

from tests.lab.services import Snapshots
from tests.lab.snapshots import SnapshotsLab, refused, settled_lab

KEEP = {"containerd.io/gc.root": "here"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SnapshotsLab]:
    with settled_lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def client(lab: SnapshotsLab) -> Snapshots:
    return lab.client


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


def test_a_key_is_taken_once(client: Snapshots) -> None:
    client.prepare("p")
    client.commit("c", "p")
    client.prepare("key", "c")
    for ask in (client.prepare, client.view):
        for name in ("key", "c"):
            assert "exists" in refused(grpc.StatusCode.ALREADY_EXISTS, ask, name, "c")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.commit, "c", "key")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.commit, "key", "key")


def test_kinds_and_parents(client: Snapshots) -> None:
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


def test_mounts_are_found_again(lab: SnapshotsLab, client: Snapshots) -> None:
    lab.layer("c", "", lambda _: None)
    asked = {"a": client.prepare("a", "c"), "v": client.view("v", "c"), "n": client.prepare("n")}
    assert {key: client.mounts(key) for key in asked} == asked
    lab.restart()
    assert {key: lab.client.mounts(key) for key in asked} == asked


def test_commit_replaces_labels_and_may_choose_a_parent(client: Snapshots) -> None:
    client.prepare("a", "", {"old": "1"})
    client.commit("base", "a", {"new": "1", "empty": ""})
    assert dict(client.stat("base").labels) == {"new": "1"}
    client.prepare("above", "base")
    assert not client.stat("above").labels
    client.prepare("b")
    refused(grpc.StatusCode.NOT_FOUND, client.commit, "top", "b", None, "missing")
    client.commit("top", "b", None, "base")
    assert client.stat("top").parent == "base"
    client.prepare("c", "top")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.commit, "other", "c", None, "base")
    client.commit("same", "c", None, "top")
    assert client.stat("same").parent == "top"


def test_one_label_or_all_and_nothing_else_can_be_changed(client: Snapshots) -> None:
    client.prepare("a", "", {"old": "1"})
    dotted = snapshots_pb2.Info(name="a", labels={"a.b/c": "1"})
    assert dict(client.update(dotted, "labels.a.b/c").labels) == {"old": "1", "a.b/c": "1"}
    for path in ("parent", "kind", "name", "labels.", "labelsx"):
        refused(grpc.StatusCode.INVALID_ARGUMENT, client.update, dotted, path)
    assert dict(client.stat("a").labels) == {"old": "1", "a.b/c": "1"}
    refused(grpc.StatusCode.NOT_FOUND, client.update, snapshots_pb2.Info(name="missing"))


def test_what_was_never_there_can_be_removed(client: Snapshots) -> None:
    client.remove("never was")


def test_times_are_exact_everywhere_and_for_ever(lab: SnapshotsLab, client: Snapshots) -> None:
    client.prepare("a", "", KEEP)
    updated = client.update(snapshots_pb2.Info(name="a", labels={"l": "ä"}))
    assert [updated] == client.list() == [client.stat("a")]
    lab.restart()
    assert [updated] == lab.client.list() == [lab.client.stat("a")]


def test_long_lists_come_in_pieces_and_bad_filters_not_at_all(client: Snapshots) -> None:
    """Of a mebibyte at most, which every client takes; but for a snapshot that is larger alone."""
    for number, length in enumerate((500_000, 500_000, 10, 2_000_000, 10)):
        client.view(f"v{number}", "", {"long": "l" * length})
    found = list(client.messages())
    assert [[info.name for info in message.info] for message in found] == [["v0", "v1", "v2"], ["v3"], ["v4"]]
    assert [info for message in found for info in message.info] == [client.stat(f"v{n}") for n in range(5)]
    assert "filter 'name='" in refused(grpc.StatusCode.INVALID_ARGUMENT, client.list, "name=")
