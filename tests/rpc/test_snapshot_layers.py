"""What layers do to each other, through the kernel's overlay; what they take on disk, and how they go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.services import Snapshots
from tests.lab.snapshots import SnapshotsLab, mounted, settled_lab, tree, write


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SnapshotsLab]:
    with settled_lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def client(lab: SnapshotsLab) -> Snapshots:
    return lab.client


def _rename(folder: Path) -> None:
    (folder / "file").rename(folder / "moved")
    os.link(folder / "keep", folder / "linked")
    (folder / "keep").unlink()


def _modes(folder: Path) -> None:
    (folder / "dir").chmod(0o1777)
    (folder / "file").chmod(0o400)
    folder.chmod(0o711)


def _replace(folder: Path) -> None:
    (folder / "file").unlink()
    (folder / "file").mkdir()
    shutil.rmtree(folder / "dir")
    write(folder / "dir", "now a file")


@pytest.mark.parametrize("change", [_rename, _modes, _replace])
def test_layers(lab: SnapshotsLab, change: Callable[[Path], None]) -> None:
    flat = lab.root / "flat"
    flat.mkdir()
    flat.chmod(0o755)

    def first(folder: Path) -> None:
        write(folder / "file", "f", 0o644)
        write(folder / "keep", "k", 0o600)
        (folder / "dir").mkdir()
        (folder / "dir").chmod(0o750)
        (folder / "dir/link").symlink_to("../file")
        write(folder / "dir/old", "o")

    def last(folder: Path) -> None:
        write(folder / "last", "l")

    parent = ""
    for number, step in enumerate((first, change, last)):
        step(flat)
        lab.layer(f"c{number}", parent, step)
        parent = f"c{number}"
        with mounted(lab.client.view(f"v{number}", parent), lab.root / "at") as at:
            assert tree(at) == tree(flat)


@pytest.mark.parametrize("layers", [0, 2])
def test_a_view_cannot_be_written(lab: SnapshotsLab, layers: int) -> None:
    for number in range(layers):
        lab.layer(f"c{number}", f"c{number - 1}" if number else "", lambda _: None)
    with (
        mounted(lab.client.view("v", f"c{layers - 1}" if layers else ""), lab.root / "at") as at,
        pytest.raises(OSError, match="Read-only file system"),
    ):
        (at / "x").touch()


def test_usage(lab: SnapshotsLab, client: Snapshots) -> None:
    with mounted(client.prepare("a"), lab.root / "at") as at:
        (at / "file").write_bytes(b"x" * 100_000)
        os.sync()
        size, inodes = client.usage("a")
        assert 100_000 < size < 200_000
        assert inodes == 2
    client.commit("c", "a")
    assert client.usage("c") == (size, inodes)
    client.view("v", "c")
    assert client.usage("v") == (0, 0)
    client.prepare("b", "c")
    assert client.usage("b")[1] == 1


def test_cleanup_takes_what_is_removed_and_nothing_else(lab: SnapshotsLab, client: Snapshots) -> None:
    def folders() -> set[str]:
        return {path.name for path in (lab.root / "snapshots").iterdir() if path.name.isdecimal()}

    client.prepare("stays")
    stays = folders()
    client.prepare("goes")
    client.remove("goes")
    assert len(folders()) == 2
    client.cleanup()
    assert folders() == stays
    (lab.root / "snapshots/99/fs").mkdir(parents=True)
    lab.restart()
    assert folders() == stays
    with mounted(lab.client.mounts("stays"), lab.root / "at") as at:
        (at / "x").touch()
