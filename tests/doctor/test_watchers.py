"""Other programs' fanotify groups, by their texts in fdinfo and by a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.doctor import looking, watchers
from modelvold.doctor.watchers import Watcher

SCANNER = "pos:\t0\nfanotify flags:4 event-flags:8000\nfanotify sdev:fe00000 mflags:0 mask:{:x} ignored_mask:0\n"
RUN = Path("/run/modelvold")
#: A program that asks to be asked before the file in its argument is opened.
_PROGRAM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
group = libc.fanotify_init(4, 0)
libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
print(libc.fanotify_mark(group, 1, 0x10000, -100, os.fsencode(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def said(*found: Watcher, daemon: int = 0, is_all: bool = True) -> list[tuple[str, str]]:
    return [(line.level.value, line.seen) for line in watchers.check(found, daemon, RUN, is_all=is_all)]


@pytest.mark.parametrize("mask", [0x10000, 0x20000, 0x100000, 0x3003B])
def test_a_scanner_is_named(mask: int) -> None:
    ((level, seen),) = said(Watcher(7, "scand", (SCANNER.format(mask),)))
    assert level == "warn"
    assert seen.startswith("scand (pid 7)")


@pytest.mark.parametrize("text", [SCANNER.format(0x3B), "fanotify flags:0 event-flags:0\n", "", "mask:zz"])
def test_one_that_only_listens_is_not(text: str) -> None:
    assert said(Watcher(7, "listener", (text,))) == [("ok", "none that is asked before files are read")]


def test_our_own_daemon_is_left_out() -> None:
    asked = SCANNER.format(0x100000)
    found = [Watcher(7, "python3", (asked,)), Watcher(8, "modelvold", (asked,))]
    assert [level for level, _ in said(*found, daemon=7)] == ["ok"]
    assert len(said(*found)) == 1


def test_not_all_could_be_looked_at() -> None:
    ((level, seen),) = said(is_all=False)
    assert level == "warn"
    assert "of this user" in seen


@pytest.fixture
def scanner(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "watched").touch()
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(tmp_path / "watched")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        if running.stdout.readline().strip() != "0":
            pytest.skip("the kernel gives no group that is asked (CONFIG_FANOTIFY_ACCESS_PERMISSIONS, root)")
        yield running.pid
        running.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: no group that is asked")
def test_a_real_one(scanner: int) -> None:
    found, is_all = looking.watchers()
    assert is_all
    (ours,) = (watcher for watcher in found if watcher.pid == scanner)
    assert ours.is_asked
    assert ours.name.startswith("python")
