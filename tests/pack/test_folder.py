"""Walking, reading and hashing real folders."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from modelvold.errors import Failure, InvalidInput, Refused
from modelvold.oci.digest import Digest
from modelvold.pack.folder import Doing, Step, pack
from modelvold.pack.read import Stop, Stopped, blocks, in_parallel
from modelvold.pack.walk import walk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text('{"model_type": "bert"}')
    (root / "sub" / "a b\u00fc.safetensors").write_bytes(os.urandom(300_000))
    (root / "empty.txt").write_bytes(b"")
    return root


def test_files_are_found_and_what_is_left_out_is_said(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "void").mkdir()
    (folder / "link.safetensors").symlink_to("sub/a b\u00fc.safetensors")
    (folder / "other").symlink_to("sub")
    walked = walk(folder)
    name = "a b\u00fc.safetensors"
    assert [f.path for f in walked.files] == [
        "config.json",
        "empty.txt",
        "link.safetensors",
        f"other/{name}",
        f"sub/{name}",
    ]
    assert {f.size for f in walked.files if f.path.endswith("safetensors")} == {300_000}
    assert [(s.path, s.reason) for s in walked.skipped] == [
        (".git", "hidden"),
        ("__pycache__", "compiled Python"),
        ("void", "an empty folder"),
    ]


def test_links_inside_a_folder_that_is_itself_reached_by_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "l.bin").symlink_to(folder / "config.json")
    (tmp_path / "alias").symlink_to(folder)
    assert "l.bin" in [found.path for found in walk(tmp_path / "alias").files]


def _fifo(root: Path) -> None:
    os.mkfifo(root / "bad")


def _socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "bad"))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda root: (root / "bad").symlink_to("/etc/passwd"), "leads out of the folder"),
        (lambda root: (root / "bad").symlink_to("../model-2"), "leads out of the folder"),
        (lambda root: (root / "bad").symlink_to("gone"), "leads nowhere"),
        (lambda root: (root / "bad").symlink_to("bad"), "leads nowhere"),
        (lambda root: (root / "sub" / "bad").symlink_to(".."), "above itself"),
        (_fifo, "neither a file nor a folder"),
        (_socket, "neither a file nor a folder"),
        (lambda root: Path(os.fsdecode(bytes(root / "bad") + b"\xff")).write_text(""), "not UTF-8"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(folder: Path, make: object, cause: str) -> None:
    (folder.parent / "model-2").mkdir()
    make(folder)  # type: ignore[operator]
    with pytest.raises(InvalidInput, match=cause) as failure:
        pack(folder, "m")
    assert "bad" in failure.value.message
    assert failure.value.remedy


@pytest.mark.parametrize("name", ["absent", "model/config.json"])
def test_only_folders_are_packed(folder: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"not a folder"):
        pack(folder.parent / name, "m")


def test_everything_is_hashed_once_and_told(folder: Path) -> None:
    steps: list[Step] = []
    packed = pack(folder, "m", steps.append)
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {entry.path: entry.digest for entry in packed.artifact.entries} == {
        p: Digest.of(c) for p, c in contents.items()
    }
    assert sum(step.size for step in steps) == packed.artifact.size == sum(map(len, contents.values()))
    assert {step.doing for step in steps} == {Doing.HASHED}
    assert b'"family":"bert"' in packed.artifact.config


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda file: file.write_bytes(b"x" * 300_001), "written to"),
        (lambda file: os.utime(file, ns=(1, 1)), "written to"),
        (lambda file: (file.unlink(), file.write_bytes(b"y")), "another file|written to"),
    ],
)
def test_a_file_that_changed_since_it_was_found_is_refused(folder: Path, change: object, how: str) -> None:
    found = walk(folder).files[-1]
    change(found.file)  # type: ignore[operator]
    with pytest.raises(Refused, match=how):
        list(blocks(found, Stop()))


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    found = walk(folder).files[-1]
    reading = blocks(found, Stop())
    next(reading)
    with found.file.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(Refused, match="grew"):
        list(reading)
    shorter = walk(folder).files[-1]
    reading = blocks(shorter, Stop())
    next(reading)
    os.truncate(shorter.file, 10)
    with pytest.raises(Refused, match="shrank"):
        list(reading)


def test_the_first_failure_stops_the_others_and_is_the_one_told(folder: Path) -> None:
    found = walk(folder).files[-1]
    stop, reading = Stop(), threading.Event()

    def work(item: int) -> None:
        if item == 0:
            reading.wait(10)
            raise Refused("the first")
        while True:
            for _ in blocks(found, stop):
                reading.set()

    with pytest.raises(Failure, match="the first"):
        in_parallel(work, [1, 0, 2, 3, 4], 2, stop, "test")
    with pytest.raises(Stopped):
        stop.check()
