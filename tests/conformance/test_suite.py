"""The 21 cases of containerd's own snapshotter suite, under its names (misspelt as they are there), over a real socket with real mounts.

`make conformance` runs the suite itself. Here each case says the same of the same verbs, on ext4 and on XFS; what goes beyond it is
in tests/rpc.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from modelvold.rpc.gen import snapshots_pb2

from tests.lab import disks
from tests.lab.disks import Disk
from tests.lab.services import Snapshots
from tests.lab.snapshots import SnapshotsLab, mounted, nanoseconds, refused, settled_lab, tree, write

ACTIVE, COMMITTED, VIEW = snapshots_pb2.ACTIVE, snapshots_pb2.COMMITTED, snapshots_pb2.VIEW
ROOT = "containerd.io/gc.root"
KEEP = {ROOT: "here"}

Step = Callable[[Path], None]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    if missing := disks.missing():
        pytest.skip(missing)
    with Disk(tmp_path_factory.mktemp("disk")) as disk:
        yield disk


@pytest.fixture(params=["ext4", "xfs"])
def lab(request: pytest.FixtureRequest, disk: Disk) -> Iterator[SnapshotsLab]:
    root = {"ext4": disk.path, "xfs": disk.image.parent}[request.param] / "root"
    root.mkdir()
    with settled_lab(root) as lab:
        yield lab
    shutil.rmtree(root)


def basic(lab: SnapshotsLab, client: Snapshots) -> None:
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
        assert tree(at) == tree(flat(lab, first))
        second(at)
    assert (client.stat("next").parent, client.stat("next").kind) == ("committed", ACTIVE)
    client.commit("committed-next", "next", KEEP)
    above = client.stat("committed-next")
    assert (above.parent, above.kind) == ("committed", COMMITTED)
    refused(grpc.StatusCode.NOT_FOUND, client.stat, "next")
    assert client.list() == [base, above]
    with mounted(client.view("view", "committed-next"), at):
        assert tree(at) == tree(flat(lab, first, second))
    client.remove("view")
    assert "remove" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "committed")
    client.remove("committed-next")
    client.remove("committed")
    assert client.list() == []


def stat_active(lab: SnapshotsLab, client: Snapshots) -> None:
    with mounted(client.prepare("preparing"), lab.root / "at") as at:
        write(at / "foo", "foo\n")
        found = client.stat("preparing")
        assert (found.name, found.kind, found.parent) == ("preparing", ACTIVE, "")


def stat_committed(lab: SnapshotsLab, client: Snapshots) -> None:
    """Committed while it is still mounted."""
    with mounted(client.prepare("preparing"), lab.root / "at") as at:
        write(at / "foo", "foo\n")
        client.commit("committed", "preparing")
        found = client.stat("committed")
        assert (found.name, found.kind, found.parent) == ("committed", COMMITTED, "")


def transitivity(lab: SnapshotsLab, client: Snapshots) -> None:
    lab.layer("a", "", lambda folder: write(folder / "foo", "foo\n"))
    lab.layer("b", "a", lambda folder: write(folder / "foo", "foo bar\n"))
    assert client.stat("b").parent == "a"
    assert client.stat("a").parent == ""


def prepare_view_failing(lab: SnapshotsLab, client: Snapshots) -> None:
    lab.layer("a", "", lambda _: None)
    for key, first, then in (
        ("new", client.prepare, client.view),
        ("prepared", client.prepare, client.prepare),
        ("viewed", client.view, client.view),
    ):
        first(key, "a")
        refused(grpc.StatusCode.ALREADY_EXISTS, then, key, "a")


def update(_lab: SnapshotsLab, client: Snapshots) -> None:
    before = time.time_ns()
    client.prepare("c1-a")
    client.commit("c1", "c1-a")
    client.prepare("c2-a", "c1")
    client.commit("c2", "c2-a")
    client.prepare("a1", "c2")
    client.prepare("a2")
    client.view("v1", "c2")
    client.view("v2")
    after = time.time_ns()
    for name, kind, parent in (
        ("c1", COMMITTED, ""),
        ("c2", COMMITTED, "c1"),
        ("a1", ACTIVE, "c2"),
        ("a2", ACTIVE, ""),
        ("v1", VIEW, "c2"),
        ("v2", VIEW, ""),
    ):
        was = client.stat(name)
        assert before <= nanoseconds(was.created_at) == nanoseconds(was.updated_at) <= after
        assert (was.name, was.kind, was.parent) == (name, kind, parent)
        labels = {"l1": "v1", "l2": "v2", "l3": "v3", ROOT: "now"}
        moment = time.time_ns()
        now = client.update(snapshots_pb2.Info(name=name, parent="doesnotexist", labels=labels))
        assert moment <= nanoseconds(now.updated_at) <= time.time_ns()
        assert (now.created_at, now.kind, now.parent, dict(now.labels)) == (was.created_at, kind, parent, labels)
        some = snapshots_pb2.Info(name=name, labels={"l1": "updated", "l4": "v4"})
        now = client.update(some, "labels.l1", "labels.l2")
        assert dict(now.labels) == {"l1": "updated", "l3": "v3", ROOT: "now"}
        whole = snapshots_pb2.Info(name=name, labels={"l4": "v4", ROOT: "now"})
        assert client.update(whole, "labels").labels == whole.labels
        refused(grpc.StatusCode.INVALID_ARGUMENT, client.update, whole, "parent")


def remove(_lab: SnapshotsLab, client: Snapshots) -> None:
    """Keys and names are free again at once."""
    client.prepare("committed-a")
    client.commit("committed-1", "committed-a")
    client.prepare("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.view("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.prepare("reuse-1")
    client.remove("committed-1")
    client.commit("committed-1", "reuse-1")


def walk(_lab: SnapshotsLab, client: Snapshots) -> None:
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
    for filters, found in (
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
    ):
        assert sorted(info.name for info in client.list(*filters)) == sorted(found.split()), filters


def layer_file_update(lab: SnapshotsLab, _client: Snapshots) -> None:
    """A file that changes neither its size nor the second of its time; often, since it may depend on the moment."""

    def first(folder: Path) -> None:
        make(folder / "etc")
        write(folder / "etc/hosts", "mydomain 10.0.0.1", 0o644)
        write(folder / "etc/profile", "PATH=/usr/bin", 0o644)

    def second(folder: Path) -> None:
        write(folder / "etc/hosts", "mydomain 10.0.0.2", 0o644)
        write(folder / "etc/profile", "PATH=/usr/bin", 0o666)
        make(folder / "root")
        write(folder / "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644)

    for number in range(5):
        check(lab, first, second, prefix=f"{number}-")


def remove_directory_in_lower_layer(lab: SnapshotsLab, _client: Snapshots) -> None:
    def first(folder: Path) -> None:
        make(folder / "lib")
        write(folder / "lib/hidden", "", 0o644)

    def second(folder: Path) -> None:
        shutil.rmtree(folder / "lib")
        make(folder / "lib")
        write(folder / "lib/not-hidden", "", 0o644)

    check(lab, first, second, lambda folder: write(folder / "lib/newfile", "", 0o644))


def chown(lab: SnapshotsLab, _client: Snapshots) -> None:
    def first(folder: Path) -> None:
        for name in ("opt", "opt/a", "opt/a/b"):
            make(folder / name)
        write(folder / "opt/a/b/file.txt", "hello", 0o644)

    def second(folder: Path) -> None:
        for name in ("opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"):
            os.chown(folder / name, 1, 1)

    check(lab, first, second)


def directory_permission_on_commit(lab: SnapshotsLab, _client: Snapshots) -> None:
    def first(folder: Path) -> None:
        for number in range(1, 6):
            make(folder / f"dir{number}")
        for name in ("dir4/f1", "dir5/f1"):
            write(folder / name, "...", 0o644)
        for name in ("dir1", "dir2", "dir3", "dir5", "dir5/f1"):
            os.chown(folder / name, 1, 1)

    def second(folder: Path) -> None:
        os.chown(folder / "dir2", 0, 0)
        (folder / "dir3").rmdir()
        for name in ("dir4", "dir4/f1"):
            os.chown(folder / name, 1, 1)

    def third(folder: Path) -> None:
        shutil.rmtree(folder / "dir5")
        for name in ("dir3", "dir5"):
            make(folder / name)
            os.chown(folder / name, 1, 1)

    check(lab, first, second, third)


def remove_intermediate_snapshot(lab: SnapshotsLab, client: Snapshots) -> None:
    lab.layer("base", "", lambda _: None)
    client.prepare("middle", "base")
    client.commit("committed-middle", "middle")
    client.prepare("top", "committed-middle")
    assert "'top'" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "committed-middle")
    for name in ("top", "committed-middle", "base"):
        client.remove(name)
    assert client.list() == []


def deleted_files_in_child_snapshot(lab: SnapshotsLab, _client: Snapshots) -> None:
    def first(folder: Path) -> None:
        write(folder / "foo", "foo\n")
        write(folder / "foobar", "foobar\n")

    check(lab, first, lambda folder: (folder / "foobar").unlink(), lambda _: None)


def move_file_from_lower_layer(lab: SnapshotsLab, _client: Snapshots) -> None:
    def first(folder: Path) -> None:
        make(folder / "dir1")
        write(folder / "dir1/f1", "Hello", 0o644)
        make(folder / "dir2")
        write(folder / "dir2/f2", "...", 0o644)

    def second(folder: Path) -> None:
        make(folder / "dir3")
        write(folder / "dir3/f1", "Hello", 0o644)
        shutil.rmtree(folder / "dir1")
        (folder / "dir3/f2").hardlink_to(folder / "dir2/f2")
        (folder / "dir2/f2").unlink()

    check(lab, first, second)


def view_readonly(lab: SnapshotsLab, client: Snapshots) -> None:
    client.prepare("preparing")
    client.commit("committed", "preparing")
    with (
        mounted(client.view("view", "committed"), lab.root / "at") as at,
        pytest.raises(OSError, match="Read-only file system"),
    ):
        (at / "testfile").write_text("testcontent")
    client.remove("view")
    client.remove("committed")


def stat_in_walk(lab: SnapshotsLab, client: Snapshots) -> None:
    """A Stat while a List is still being read, by another call on the same socket."""
    lab.layer("c1", "", lambda _: None)
    lab.layer("c2", "c1", lambda _: None)
    client.prepare("a1", "c2")
    client.view("v1", "c2")
    seen = []
    for info in client.walk():
        assert client.stat(info.name) == info
        seen.append(info.name)
    assert sorted(seen) == ["a1", "c1", "c2", "v1"]


def close_twice(lab: SnapshotsLab, client: Snapshots) -> None:
    """containerd's Close of a proxy is nothing that we hear of; what ends here is the daemon's side, twice."""
    client.prepare("preparing")
    client.commit("committed", "preparing")
    client.remove("committed")
    lab.close()
    lab.close()
    lab.restart()
    assert lab.client.list() == []


def root_permission(lab: SnapshotsLab, client: Snapshots) -> None:
    with mounted(client.prepare("preparing"), lab.root / "at") as at:
        assert stat.S_IMODE(at.stat().st_mode) == 0o755


def rename(lab: SnapshotsLab, _client: Snapshots) -> None:
    """But for a lower layer's directory, which no overlay without redirect_dir renames: EXDEV, and programs copy."""

    def first(folder: Path) -> None:
        make(folder / "dir1")
        make(folder / "somefiles")
        write(folder / "somefiles/f1", "was here first!", 0o644)
        write(folder / "somefiles/f2", "nothing interesting", 0o644)

    def second(folder: Path) -> None:
        write(folder / "somefiles/f1-overwrite", "new content 1", 0o644)
        (folder / "somefiles/f1-overwrite").rename(folder / "somefiles/f1")
        (folder / "somefiles/f2").rename(folder / "somefiles/f3")

    check(lab, first, second)


def mount_of_128_layers(lab: SnapshotsLab, client: Snapshots) -> None:
    beside, parent = lab.root / "flat", ""
    beside.mkdir()
    beside.chmod(0o755)

    def lowest(folder: Path) -> None:
        write(folder / "bottom", "way at the bottom\n")
        write(folder / "overwriteme", "FIRST!\n")
        make(folder / "addhere", 0o755)
        make(folder / "onlyme", 0o755)
        write(folder / "onlyme/bottom", "bye!\n")

    def layer(folder: Path, number: int) -> None:
        write(folder / "overwriteme", f"{number} WAS HERE!\n")
        write(folder / f"addhere/file-{number}", "same\n", 0o755)
        shutil.rmtree(folder / "onlyme")
        make(folder / "onlyme", 0o755)
        write(folder / f"onlyme/file-{number}", "only me!\n")

    for number in range(128):
        with mounted(client.prepare(f"preparing-{number}", parent), lab.root / "at") as at:
            for folder in (at, beside):
                layer(folder, number) if number else lowest(folder)
            assert tree(at) == tree(beside)
        parent = f"committed-{number}"
        client.commit(parent, f"preparing-{number}")
    with mounted(client.view("view", parent), lab.root / "at") as at:
        assert tree(at) == tree(beside)


CASES: Mapping[str, Callable[[SnapshotsLab, Snapshots], None]] = {
    "Basic": basic,
    "StatActive": stat_active,
    "StatComitted": stat_committed,
    "TransitivityTest": transitivity,
    "PreareViewFailingtest": prepare_view_failing,
    "Update": update,
    "Remove": remove,
    "Walk": walk,
    "LayerFileupdate": layer_file_update,
    "RemoveDirectoryInLowerLayer": remove_directory_in_lower_layer,
    "Chown": chown,
    "DirectoryPermissionOnCommit": directory_permission_on_commit,
    "RemoveIntermediateSnapshot": remove_intermediate_snapshot,
    "DeletedFilesInChildSnapshot": deleted_files_in_child_snapshot,
    "MoveFileFromLowerLayer": move_file_from_lower_layer,
    "ViewReadonly": view_readonly,
    "StatInWalk": stat_in_walk,
    "CloseTwice": close_twice,
    "RootPermission": root_permission,
    "Rename": rename,
    "128LayersMount": mount_of_128_layers,
}


@pytest.mark.parametrize("case", CASES)
def test_case(lab: SnapshotsLab, case: str) -> None:
    CASES[case](lab, lab.client)


def check(lab: SnapshotsLab, *steps: Step, prefix: str = "") -> None:
    """Each step makes one layer; all of them together, seen through a view of the last, are what they make in one folder."""
    parent = ""
    for number, step in enumerate(steps):
        lab.layer(name := f"{prefix}committed-{number}", parent, step)
        parent = name
        with mounted(lab.client.view(f"{prefix}view-{number}", parent), lab.root / "at") as at:
            assert tree(at) == tree(flat(lab, *steps[: number + 1]))


def flat(lab: SnapshotsLab, *steps: Step) -> Path:
    """A folder in which they were taken one after another."""
    folder = lab.root / "flat"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o755)
    for step in steps:
        step(folder)
    return folder


def make(path: Path, mode: int = 0o700) -> None:
    path.mkdir()
    path.chmod(mode)
