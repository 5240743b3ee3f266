"""The verbs as an operator types them: usage, failures, and the ones that are done at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from modelvold.errors import InUse, NotFound

from tests.cli.behind import InMemory
from tests.cli.typed import environment, on_a_terminal, run, start

VERBS = ["serve", "status", "mount", "umount", "pull", "rm", "pin", "unpin", "gc", "verify", "pack", "image", "doctor"]
#: Those that ask the daemon, with what they must be given.
ASKING = [
    ["status"],
    ["pull", "h/m"],
    ["rm", "h/m"],
    ["pin", "h/m"],
    ["unpin", "h/m"],
    ["gc"],
    ["verify"],
    ["mount", "h/m", "/tmp"],
    ["umount", "/tmp"],
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_starts_with_the_verb(verb: str) -> None:
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert f"Example: modelvold {verb} " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["pull"], "Missing argument 'REF...'"),
        (["pin"], "Missing argument 'REF'"),
        (["gc", "h/m"], "unexpected extra argument"),
        (["status", "--bogus"], "No such option"),
        (["mount", "h/m", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["pack", "/tmp", "-t", "h/m"], "--output"),
        (["pack", "/tmp", "--push"], "--tag"),
    ],
)
def test_wrong_usage_is_two(words: list[str], says: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("modelvold: ")
    assert says in first
    assert "--help` shows an example" in second


def test_no_verb_is_wrong_usage_too() -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert all(verb in err for verb in VERBS)


def test_a_daemon_that_does_not_run(address: Path) -> None:
    for verb in ASKING:
        code, out, err = run(*verb, "--address", address)
        assert (code, out) == (1, "")
        assert err.splitlines() == [
            f"modelvold: the daemon is not running: there is no socket {address}",
            "start it with `systemctl start modelvold` or `modelvold serve`; another socket is named by --address",
        ]


def test_status(operator: InMemory, address: Path) -> None:
    code, out, err = run("status", "--address", address)
    assert (code, err) == (0, "")
    assert "h/m:v1" in out
    assert "50 %" in out
    code, out, _ = run("status", "h/m:v1", "--json", MODELVOLD_ADDRESS=str(address))
    found = json.loads(out)
    assert code == 0
    assert found["volumes"][0]["present"] == 5
    assert found["volumes"][0]["consumers"] == ["pod a"]
    assert found["node"]["backend"] == "lazy"
    assert operator.asked == [("report", None), ("report", "h/m:v1")]


def test_watching_ends_with_ctrl_c(operator: InMemory, address: Path) -> None:
    with start("status", "--watch", "--json", "--address", address) as process:
        assert process.stdout
        for _ in range(2):
            assert json.loads(process.stdout.readline())["volumes"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert len(operator.asked) >= 2


def test_mount_umount_rm_pin_unpin(operator: InMemory, address: Path, tmp_path: Path) -> None:
    for words, said in (
        (["mount", "h/m:v1", tmp_path], "h/m:v1: 10 B at"),
        (["umount", tmp_path], ""),
        (["rm", "h/m:v1"], "freed 3.00 GiB"),
        (["pin", "h/m:v1"], ""),
        (["unpin", "h/m:v1"], ""),
    ):
        code, out, err = run(*words, "--address", address)
        assert (code, out) == (0, "")
        assert said in err
    assert operator.asked == [
        ("mount", "h/m:v1", tmp_path),
        ("unmount", tmp_path),
        ("remove", "h/m:v1"),
        ("pin", "h/m:v1"),
        ("unpin", "h/m:v1"),
    ]


def test_gc_prints_what_went_or_would(operator: InMemory, address: Path) -> None:
    for words, said in ((["--dry-run"], "would free 3.00 GiB\n"), ([], "freed 3.00 GiB\n")):
        code, out, err = run("gc", *words, "--address", address)
        assert (code, err) == (0, said)
        assert out.splitlines() == ["2.00 GiB  h/m:v1 (sha256:0)", "1.00 GiB  h/\ufffdm:v2 (sha256:1)"]
    operator.collected = []
    assert run("gc", "--address", address) == (0, "", "nothing to forget: every model is in use or pinned\n")
    assert operator.asked == [("collect", True), ("collect", False), ("collect", False)]


def test_folders_are_absolute_when_the_daemon_hears_of_them(operator: InMemory, address: Path) -> None:
    assert run("umount", "x", "--address", address)[0] == 0
    assert operator.asked == [("unmount", Path.cwd() / "x")]


@pytest.mark.parametrize("words", ASKING)
def test_a_failure_is_two_lines_and_one(operator: InMemory, address: Path, words: list[str]) -> None:
    operator.failure = InUse("h/m: used by\n pod \x1b[31ma", "stop it")
    code, out, err = run(*words, "--address", address)
    assert (code, out) == (1, "")
    assert err.splitlines() == ["modelvold: h/m: used by pod \ufffd[31ma", "stop it"]
    operator.failure = NotFound("h/m: not here")
    assert run(*words, "--address", address)[2] == "modelvold: h/m: not here\n"


def test_watching_on_a_terminal(operator: InMemory, address: Path) -> None:
    screen = on_a_terminal("status", "--watch", "--address", address, end=lambda: len(operator.asked) > 2)
    assert screen.count("VOLUME") >= 2


def test_status_fits_the_terminal(operator: InMemory, address: Path) -> None:
    lines = on_a_terminal("status", "--address", address, COLUMNS="80").splitlines()
    assert "VOLUME" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [["--help"], ["pull", "--help"], ["pull", "h/m", "--address", "/nowhere"]])
def test_a_verb_imports_what_it_needs_and_no_more(words: list[str]) -> None:
    """What takes a tenth of a second to import is imported when it is used: gRPC to ask the daemon, rich to draw on a terminal."""
    code = "import sys; from modelvold.cli import _run; _run(sys.argv[1:]); print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True, check=True
    )
    imported = set(ran.stdout.splitlines()[-1].split())
    assert "click" in imported
    unwanted = {"rich", "msgspec", "modelvold.store.store", "modelvold.doctor"} - (
        {"msgspec"} if words == ["--help"] else set()
    )
    assert not imported & unwanted
    assert ("grpc" in imported) == ("/nowhere" in words)


def test_a_reader_that_goes_away(operator: InMemory, address: Path) -> None:
    with start("status", "--watch", "--json", "--address", address) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
