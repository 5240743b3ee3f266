from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.errors import InvalidInput
from modelvold.snapshot.folders import Folders
from modelvold.snapshot.record import Info, Kind, Layer, Record, Usage


def record(number: int, kind: Kind = Kind.ACTIVE, *parents: Layer) -> Record:
    return Record(Info(f"k{number}", "", kind, {}, 0, 0), Layer(number), Usage(), parents)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "snapshots")


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes_and_owners_whatever_the_umask(folders: Folders, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    folders.make(record(1))
    assert stat.S_IMODE((root / "1/fs").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "1/work").stat().st_mode) == 0o711
    (root / "1/fs").chmod(0o1777)
    os.chown(root / "1/fs", 1000, 2000)
    folders.make(record(2, Kind.VIEW, Layer(1)))
    child = (root / "2/fs").stat()
    assert (stat.S_IMODE(child.st_mode), child.st_uid, child.st_gid) == (0o1777, 1000, 2000)
    assert not (root / "2/work").exists()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_folder_left_by_a_rollback_is_no_obstacle(folders: Folders, tmp_path: Path) -> None:
    left = tmp_path / "snapshots/1/fs"
    left.mkdir(parents=True)
    (left / "old").touch()
    folders.make(record(1))
    assert list(left.iterdir()) == []


def test_only_the_dead_are_removed(folders: Folders, tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    for number in (1, 2, 10):
        folders.make(record(number))
        (root / str(number) / "fs/file").write_text("x")
    (root / "lost+found").mkdir()
    folders.set_aside({2})
    folders.remove()
    assert {path.name for path in root.iterdir()} == {"2", "lost+found", "removed"}
    assert (root / "2/fs/file").read_text() == "x"
    assert not list((root / "removed").iterdir())


def test_what_a_container_may_leave(folders: Folders, tmp_path: Path) -> None:
    """Deeper than a path may be long and than a recursion may go; links out of the tree; odd kinds of files."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folders.make(record(1))
    upper = tmp_path / "snapshots/1/fs"
    (upper / "link").symlink_to(outside)
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (upper / "locked").mkdir(mode=0o000)
    here = os.open(upper, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    folders.set_aside(set())
    folders.remove()
    assert not list((tmp_path / "snapshots/removed").iterdir())
    assert (outside / "precious").exists()


def test_a_mount_is_never_followed(folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    folders.make(record(1))
    folders.make(record(2))
    inside = tmp_path / "snapshots/1/fs/a/b"
    inside.mkdir(parents=True)
    on_top = tmp_path / "snapshots/2"
    for at in (inside, on_top):  # the same file system: no device number tells them apart
        subprocess.run(["mount", "--bind", outside, at], check=True)
    try:
        with caplog.at_level(logging.WARNING):
            folders.set_aside(set())
            folders.remove()
            folders.remove()
        assert (outside / "precious").exists()
        assert on_top.exists()
        assert "busy" in caplog.text
    finally:
        found = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for at in (point for point in found if point.startswith(str(tmp_path))):
            subprocess.run(["umount", at], check=True)
    folders.set_aside(set())
    folders.remove()
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"removed"}
    assert not list((tmp_path / "snapshots/removed").iterdir())


def test_usage_counts_blocks_once(folders: Folders, tmp_path: Path) -> None:
    folders.make(record(1))
    upper = tmp_path / "snapshots/1/fs"
    empty = folders.usage(1)
    (upper / "a").write_bytes(b"x" * 10_000)
    os.link(upper / "a", upper / "b")
    (upper / "sparse").touch()
    os.truncate(upper / "sparse", 1 << 30)
    (upper / "d").mkdir()
    (upper / "d/link").symlink_to("/etc")
    subprocess.run(["sync", "-f", upper], check=True)
    expected = subprocess.run(["du", "-s", "-B1", upper], check=True, capture_output=True, text=True).stdout.split()[0]
    assert folders.usage(1) == Usage(int(expected), 5)
    assert empty.inodes == 1


def test_a_live_snapshot_without_a_folder_is_told(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    folders.set_aside({7})
    assert "miss folder number=7" in caplog.text


def test_a_path_that_overlay_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="colon"):
        Folders(tmp_path / "a:b")
