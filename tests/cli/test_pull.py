"""`pull` as an operator types it: on a terminal, elsewhere, as JSON; how it ends."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from modelvold.errors import Unauthorized

from tests.cli.behind import STEP, InMemory
from tests.cli.typed import on_a_raw_terminal, on_a_terminal, run, start

_LONG = "registry.example.com:5000/teams/research/models/llama-3-70b-instruct-with-a-long-name:v1.2.3-rc4"
_DOCUMENT = (Path(__file__).parents[2] / "docs" / "fetching.md").read_text()
_GIB = 1 << 30
_PART = replace(STEP, size=4 * _GIB, present=_GIB, durable=_GIB, verified=_GIB // 2, rate=1.25 * _GIB, eta=2.4)
_ALL = replace(_PART, present=4 * _GIB, durable=4 * _GIB, verified=4 * _GIB, done=True)
_NONE = replace(_PART, present=0, durable=0, verified=0, rate=0.0, eta=-1.0)
_TIME = r"[0-9.]+ s \([0-9.]+ [A-Z]iB/s\)"


def test_elsewhere_than_on_a_terminal_only_the_outcome_is_told(operator: InMemory, address: Path) -> None:
    operator.steps = [_NONE, _PART, _ALL]
    code, out, err = run("pull", "h/m:v1", "--address", address)
    assert (code, out) == (0, "")
    assert re.fullmatch(rf"pulled h/m:v1: 4\.00 GiB in {_TIME}, verified\n", err)


def test_what_was_here_is_not_counted_as_fetched(operator: InMemory, address: Path) -> None:
    operator.steps = [_PART, _ALL]
    err = run("pull", "h/m:v1", "--address", address)[2]
    assert re.fullmatch(rf"pulled h/m:v1: 3\.00 GiB of 4\.00 GiB in {_TIME}, verified\n", err)
    operator.steps = [_ALL]
    assert run("pull", "h/m:v1", "--address", address) == (0, "", "pulled h/m:v1: 4.00 GiB already here, verified\n")


def test_events(operator: InMemory, address: Path) -> None:
    operator.steps = [_PART, _ALL]
    code, out, err = run("pull", "h/m:v1", "--json", "--address", address)
    assert (code, err) == (0, "")
    first, last = map(json.loads, out.splitlines())
    assert first == {
        "event": "progress",
        "reference": "h/m:v1",
        "size": 4 * _GIB,
        "present": _GIB,
        "durable": _GIB,
        "verified": _GIB // 2,
        "rate": 1.25 * _GIB,
        "eta": 2.4,
    }
    assert last.pop("seconds") > 0
    assert last.pop("rate") > 0
    assert last == {"event": "done", "reference": "h/m:v1", "size": 4 * _GIB, "fetched": 3 * _GIB}


def test_every_field_of_an_event_is_documented(operator: InMemory, address: Path) -> None:
    operator.steps = [_PART, _ALL]
    operator.failures["h/bad"] = Unauthorized("h: wants credentials", "docker login h")
    help_text = run("pull", "--help")[1]
    events = [
        json.loads(line) for line in run("pull", "h/m:v1", "h/bad", "--json", "--address", address)[1].splitlines()
    ]
    assert [event["event"] for event in events] == ["progress", "done", "progress", "failed"]
    for event in events:
        assert f"| `{event['event']}` |" in _DOCUMENT
        assert all(f"`{name}`" in _DOCUMENT and f'"{name}"' in help_text for name in event)


def test_events_come_at_most_twice_a_second(operator: InMemory, address: Path) -> None:
    operator.steps = [*(replace(_NONE, present=n) for n in range(500)), _ALL]
    out = run("pull", "h/m:v1", "--json", "--address", address)[1]
    assert len(out.splitlines()) < 100


def test_a_failure_is_an_event_and_two_lines(operator: InMemory, address: Path) -> None:
    operator.failures["h/m:v1"] = Unauthorized("h: wants credentials", "docker login h")
    code, out, err = run("pull", "h/m:v1", "--json", "--address", address)
    assert (code, err) == (1, "modelvold: h: wants credentials\ndocker login h\n")
    assert json.loads(out.splitlines()[-1]) == {
        "event": "failed",
        "reference": "h/m:v1",
        "kind": "Unauthorized",
        "cause": "h: wants credentials",
        "next": "docker login h",
    }


def test_several_come_one_after_the_other_and_one_keeps_none_from_coming(operator: InMemory, address: Path) -> None:
    operator.failures["h/b"] = Unauthorized("h: wants credentials", "docker login h")
    operator.steps = [_ALL]
    code, out, err = run("pull", "h/a", "h/b", "h/c", "h/a", "--address", address)
    assert (code, out) == (1, "")
    assert [asked[1] for asked in operator.asked] == ["h/a", "h/b", "h/c"]
    assert err.splitlines() == [
        "pulled h/a: 4.00 GiB already here, verified",
        "modelvold: h: wants credentials",
        "docker login h",
        "pulled h/c: 4.00 GiB already here, verified",
    ]
    assert run("pull", "h/a", "h/c", "--address", address)[0] == 0


def test_a_daemon_that_does_not_run_is_told_once(address: Path) -> None:
    code, _, err = run("pull", "h/a", "h/b", "--address", address)
    assert code == 1
    assert len(err.splitlines()) == 2
    events = run("pull", "h/a", "h/b", "--json", "--address", address)[1].splitlines()
    assert [json.loads(event)["reference"] for event in events] == ["h/a", "h/b"]


def test_a_pull_that_is_not_done_has_failed(operator: InMemory, address: Path) -> None:
    for steps in ([STEP], []):
        operator.steps = steps
        code, _, err = run("pull", "h/m:v1", "--address", address)
        assert code == 1
        assert "before it was done" in err


def test_ctrl_c_ends_the_wait_and_says_what_goes_on(operator: InMemory, address: Path) -> None:
    operator.held.set()
    with start("pull", "h/m:v1", "h/n:v1", "--json", "--address", address) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    goes_on = "the daemon goes on with h/m:v1: `modelvold status` shows how far, `modelvold rm` ends it"
    assert (process.returncode, err) == (1, f"modelvold: interrupted\n{goes_on}\n")
    event = json.loads(out)
    assert (event["event"], event["cause"], event["next"]) == ("failed", "interrupted", goes_on)
    assert operator.ended.wait(10)
    assert [asked[1] for asked in operator.asked] == ["h/m:v1"]


def test_ctrl_c_before_anything_was_begun(operator: InMemory, address: Path) -> None:
    operator.steps = []
    operator.held.set()
    operator.before_pull.set()
    with start("pull", "h/m:v1", "--address", address) as process:
        assert operator.begun.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "modelvold: interrupted\nnothing of h/m:v1 was begun\n")


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_bars_fit_the_terminal(operator: InMemory, address: Path, columns: int) -> None:
    operator.steps = [_NONE, _PART, replace(_PART, present=4 * _GIB, eta=0.0), _ALL]
    screen = on_a_terminal("pull", _LONG, "h/n:v1", "--address", address, columns=columns)
    lines = re.split(r"[\r\n]+", screen)
    drawn = [line for line in lines if not line.startswith("pulled ")]
    assert all(len(line) < columns for line in drawn), drawn
    assert sum("\u2501" in line for line in drawn) >= 2
    assert any(line.startswith("regist") and "\u2026" in line for line in drawn)
    first, second = (line for line in lines if line.startswith("pulled "))
    assert len(first) <= columns or columns < 80
    assert first.endswith("verified")
    assert second.startswith("pulled h/n:v1: 4.00 GiB in ")
    if columns == 80:
        assert any("2.4 s left" in line for line in drawn)
        assert any(
            "1.00 GiB of 4.00 GiB" in line and "1.25 GiB/s" in line and "12 % verified" in line for line in drawn
        )
        assert any("? left" in line for line in drawn)
        assert any("checking" in line for line in drawn)


def test_bars_are_taken_away_at_the_end(operator: InMemory, address: Path) -> None:
    """What is drawn anew goes up as many lines as were drawn; nothing but the outcome stays."""
    operator.steps = [_PART, _PART, _ALL]
    raw = on_a_raw_terminal("pull", "h/m:v1", "--address", address, columns=80)
    assert _stays(raw) == ["pulled h/m:v1: 3.00 GiB of 4.00 GiB in T, verified"]


def test_colours_are_left_out_where_they_are_not_wanted(operator: InMemory, address: Path) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m|\x1b\[9[0-9]m")
    operator.steps = [_PART, _ALL]
    assert colour.search(on_a_raw_terminal("pull", "h/m:v1", "--address", address, columns=80))
    assert not colour.search(on_a_raw_terminal("pull", "h/m:v1", "--address", address, columns=80, NO_COLOR="1"))


def test_ctrl_c_on_a_terminal(operator: InMemory, address: Path) -> None:
    operator.held.set()
    operator.steps = [_PART, _PART, _ALL]
    raw = on_a_raw_terminal(
        "pull", "h/m:v1", "--address", address, columns=80, status=1, end=lambda: bool(operator.asked)
    )
    assert _stays(raw)[0] == "modelvold: interrupted"
    assert raw.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in raw  # the cursor is there again


def _stays(raw: str) -> list[str]:
    """The lines that are left on a terminal which got this."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", raw):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[([0-9]+)A", token):
            row -= int(up[1])
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token[0] not in "\r\x1b":
            lines[row] += token
    assert row >= 0
    return [re.sub(_TIME, "T", line) for line in lines if line]
