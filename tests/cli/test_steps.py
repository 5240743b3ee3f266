"""The verbs that take long: what they say meanwhile, how they end, and what Ctrl-C does."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.behind import CHECK, RIGHT, InMemory
from tests.cli.typed import on_a_terminal, run, start


def test_a_mount_that_waits_says_how_far_it_is(operator: InMemory, address: Path, tmp_path: Path) -> None:
    operator.before_mount = operator.steps
    code, out, err = run("mount", "h/m:v1", tmp_path, "--address", address)
    assert (code, out) == (0, "")
    half, whole, said = err.splitlines()
    assert half.startswith("h/m:v1: 50 % present")
    assert "done" in whole
    assert said.startswith("h/m:v1: 10 B at")


def test_a_check_says_each_step(operator: InMemory, address: Path) -> None:
    code, out, err = run("verify", "h/m:v1", "--repair", "--address", address)
    assert (code, out) == (0, "")
    assert [line.partition(": ")[2] for line in err.splitlines()] == [
        "50 % of 10 B read, nothing wrong, 2 B/s",
        "100 % of 10 B read, nothing wrong, done",
    ]
    code, out, err = run("verify", "--json", "--address", address)
    assert (code, err) == (0, "")
    assert [json.loads(line)["done"] for line in out.splitlines()] == [False, True]
    assert operator.asked == [("verify", "h/m:v1", True), ("verify", None, False)]


@pytest.mark.parametrize(
    ("words", "wrong", "repaired", "said"),
    [
        (["h/m:v1"], 1, 0, "h/m:v1: 1 segment did not hold the bytes recorded; out of service, and fetched again"),
        ([], 3, 0, "the store: 3 segments did not hold the bytes recorded; out of service, and fetched again"),
        (["--repair"], 3, 1, "the store: 2 of 3 segments with wrong bytes could not be fetched again"),
    ],
)
def test_a_check_that_leaves_something_wrong_has_failed(
    operator: InMemory, address: Path, words: list[str], wrong: int, repaired: int, said: str
) -> None:
    operator.checks = [replace(RIGHT, wrong=wrong, repaired=repaired)]
    code, out, err = run("verify", *words, "--address", address)
    assert (code, out) == (1, "")
    _, failure, remedy = err.splitlines()
    assert failure.startswith(f"modelvold: {said}")
    assert ("`modelvold status`" if repaired else "`modelvold verify --repair`") in remedy
    operator.checks = [replace(RIGHT, wrong=wrong, repaired=wrong)]
    code, _, err = run("verify", *words, "--address", address)
    assert code == 0
    assert f"{wrong} repaired, done" in err


def test_a_check_that_is_not_done_has_failed(operator: InMemory, address: Path) -> None:
    for checks in ([CHECK], []):
        operator.checks = checks
        code, _, err = run("verify", "--address", address)
        assert code == 1
        assert "the store: the daemon ended the check before it was done" in err


def test_ctrl_c_ends_it_here_and_there(operator: InMemory, address: Path) -> None:
    operator.held.set()
    with start("verify", "h/m:v1", "--json", "--address", address) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (1, "", "\nmodelvold: interrupted\n")  # after the terminal's ^C
    assert operator.ended.wait(10)


def test_a_check_shows_a_bar_on_a_terminal(operator: InMemory, address: Path) -> None:
    operator.checks = [CHECK, replace(RIGHT, wrong=2, repaired=2)]
    screen = on_a_terminal("verify", "--repair", "--address", address)
    assert "100 % of 10 B  2 segments wrong, 2 repaired" in screen
    assert "\u2501" in screen
