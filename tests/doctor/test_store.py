"""The store's folder and its file system, by values: where it is, whether it lasts, who holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from modelvold.doctor import store
from modelvold.doctor.line import Line
from modelvold.doctor.store import Place
from modelvold.linux.filesystem import has_journal

ROOT = Path("/var/lib/modelvold")
GOOD = Place(ROOT, ROOT, True, True, "ext4", "sda1", True, 200 << 30, 100 << 30, 0)


def said(place: Place) -> dict[str, Line]:
    return {line.what: line for line in store.check(place)}


def test_a_good_store() -> None:
    assert {line.level for line in said(GOOD).values()} == {"ok"}
    assert said(GOOD)["file system"].seen == "ext4 on sda1, durable"
    assert said(GOOD)["room"].seen == "100 GiB free of 200 GiB, 50 %"


def test_a_store_that_is_not_there_yet() -> None:
    line = said(replace(GOOD, nearest=Path("/var/lib")))["folder"]
    assert line.level == "ok"
    assert line.seen == "/var/lib/modelvold, not there yet; can be made, and was tried, in /var/lib"


@pytest.mark.parametrize(
    ("place", "seen"),
    [
        (replace(GOOD, is_writable=False), "/var/lib/modelvold: cannot be written"),
        (
            replace(GOOD, nearest=Path("/var"), is_writable=False),
            "/var/lib/modelvold: not there, and /var cannot be written",
        ),
        (replace(GOOD, nearest=Path("/var"), is_folder=False), "/var/lib/modelvold: /var is no folder"),
    ],
)
def test_a_store_that_cannot_be(place: Place, seen: str) -> None:
    line = said(place)["folder"]
    assert (line.level, line.seen) == ("bad", seen)
    assert "--root" in line.mend


@pytest.mark.parametrize(
    ("fs_type", "journal", "level", "seen"),
    [
        ("ext3", True, "ok", "durable"),
        ("xfs", False, "ok", "durable"),
        ("btrfs", False, "ok", "durable"),
        ("ext4", False, "warn", "without a journal: not durable"),
        ("ext2", False, "warn", "without a journal: not durable"),
        ("tmpfs", False, "warn", "empty after a reboot"),
        ("overlay", False, "warn", "gone with the container"),
        ("nfs4", False, "warn", "unknown"),
    ],
)
def test_file_systems(fs_type: str, journal: bool, level: str, seen: str) -> None:
    line = said(replace(GOOD, fs_type=fs_type, has_journal=journal))["file system"]
    assert line.level == level
    assert seen in line.seen
    assert ("tune2fs -O has_journal /dev/sda1" in line.mend) == (fs_type in {"ext2", "ext4"} and not journal)


@pytest.mark.parametrize(("free", "level"), [(20 << 30, "ok"), (19 << 30, "warn"), (0, "warn")])
def test_less_than_a_tenth_free(free: int, level: str) -> None:
    assert said(replace(GOOD, free=free))["room"].level == level


def test_less_than_ten_gibibytes_free() -> None:
    line = said(replace(GOOD, total=12 << 30, free=(10 << 30) - 1))["room"]
    assert line.level == "warn"
    assert "modelvold rm" in line.mend


def test_a_file_system_that_does_not_say() -> None:
    assert said(replace(GOOD, total=0, free=0))["room"].level == "warn"


def test_whose_it_is() -> None:
    assert "in use" not in said(GOOD)
    assert said(replace(GOOD, holder=7))["in use"].seen == "a daemon runs on it (pid 7)"


def test_the_holder_of_a_lock() -> None:
    locks = (
        "1: POSIX  ADVISORY  WRITE 11 fe:00:1234 0 EOF\n"
        "2: FLOCK  ADVISORY  WRITE 12 fe:00:12345 0 EOF\n"
        "3: FLOCK  ADVISORY  WRITE 13 fe:00:1234 0 EOF\n"
        "3: -> FLOCK  ADVISORY  WRITE 14 fe:00:1234 0 EOF\n"
    )
    assert store.holder(locks, "254:0", 1234) == 13
    assert store.holder(locks, "254:1", 1234) == 0
    assert store.holder("garbage", "254:0", 1234) == 0


def test_journals() -> None:
    assert has_journal("sda1", ["sda1-8"], "")
    assert has_journal("dm-0", ["sda1-8", "dm-0-8"], "")
    assert has_journal("sda1", ["sdb1"], "rw\ndata=ordered\n")  # the journal lies on another disk
    assert not has_journal("sda", ["sda1-8"], "rw\nnodelalloc\n")
    assert not has_journal("", ["sda1-8"], "")
