"""What GNU tar packs, in each of its formats, is what lies on the disk."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from modelvold.layer.toc import Entry, Kind
from modelvold.oci.file_metadata import LATEST

from tests.layer.tars import stepwise, whole

TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.HARDLINK: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.DIRECTORY: stat.S_IFDIR,
}
NAMES = ["config.json", "deep/er/and deeper/w.bin", "\udcff\udcfe", "模型", "new\nline", "..a", "-x", "a" * 95]
LONG = ["n" * 255, "d" * 200 + "/" + "n" * 200, "\udcff" * 140, "p" * 150 + "/" + "n" * 95]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_is_packed_is_what_lies_there(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "packed"
    build(folder, form)
    command = ["tar", f"--format={form}", "--sort=name", "-C", str(folder), "-cf", "-", "."]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    entries = whole(archive).entries
    assert sorted(entry.path for entry in entries) == [
        "",
        *sorted(str(p.relative_to(folder)) for p in folder.rglob("*")),
    ]
    assert {entry.kind for entry in entries} == set(Kind)
    for entry in entries:
        compare(entry, folder, archive, 1 if form == "posix" else 1_000_000_000)
    assert stepwise(archive).entries == entries


def build(folder: Path, form: str) -> None:
    """A folder of everything that the format has room for."""
    choose = random.Random(form)
    is_roomy = form not in {"v7", "ustar"}
    for number, name in enumerate(NAMES + LONG if is_roomy else NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(choose.randbytes(choose.choice((0, 1, 511, 512, 513, 5000))))
        path.chmod(choose.randrange(0o1000) | 0o400)
        os.utime(path, ns=(0, choose.randrange(1 << 60)))
        (folder / f"hard-{number}").hardlink_to(path)
    (folder / "empty").mkdir()
    (folder / "soft").symlink_to("../up/\udcff")
    if form == "ustar":
        (folder / ("p" * 90) / ("q" * 61)).mkdir(parents=True)
        (folder / ("p" * 90) / ("q" * 61) / ("n" * 100)).write_bytes(b"its prefix and its name are full")
    if is_roomy:
        (folder / "soft and long").symlink_to("t" * 300)
        os.utime(folder / "empty", ns=(0, -1_500_000_000))
        os.utime(folder / "config.json", ns=(0, 9_000_000_000_123_456_789))
        with suppress(OSError):
            os.lchown(folder / "soft", 3_000_000_000, 0xFFFFFFFE)


def compare(entry: Entry, folder: Path, archive: bytes, grain: int) -> None:
    """The entry and the file at its path; the archive's times are multiples of `grain` nanoseconds."""
    path = folder / entry.path
    there = path.lstat()
    assert TYPES[entry.kind] == stat.S_IFMT(there.st_mode)
    assert (entry.mode, entry.uid, entry.gid) == (there.st_mode & 0o777, there.st_uid, there.st_gid)
    assert entry.mtime == max(0, min(LATEST, there.st_mtime_ns // grain * grain))
    if entry.kind is Kind.SYMLINK:
        assert entry.link == str(path.readlink())
    elif entry.kind is Kind.HARDLINK:
        assert path.samefile(folder / entry.link)
    elif entry.kind is Kind.FILE:
        assert archive[entry.offset : entry.offset + entry.size] == path.read_bytes()
