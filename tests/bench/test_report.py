"""The form in which benches tell what they saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.measure import turns
from bench.report import OURS, Figures, Goal


def _figures(**rows: dict[str, list[float]]) -> Figures:
    figures = Figures()
    figures.rows = rows
    return figures


def test_a_table_has_medians_and_ratios_of_ours_to_each_peer() -> None:
    figures = Figures()
    for ours, theirs in ((1.0, 4.0), (9.0, 8.0), (2.0, 3.0)):
        figures.add("pull, s", OURS, ours)
        figures.add("pull, s", "oras", theirs)
    figures.add("memory, MiB", OURS, 250.25)
    assert [line.split() for line in report.table(figures).splitlines()] == [
        ["modelvold", "oras", "ratio"],
        ["pull,", "s", "2", "4", "0.500"],
        ["memory,", "MiB", "250.2"],
    ]


@pytest.mark.parametrize(
    ("goal", "judgement"),
    [
        (Goal("a", 0.5, ("x",)), "goal a: ≤ 0.5 of x: 0.500, met"),
        (Goal("a", 0.4, ("x",)), "goal a: ≤ 0.4 of x: 0.500, MISSED"),
        (Goal("a", 0.3, ("x", "y")), "goal a: ≤ 0.3 of the larger of x and y: 0.250, met"),
        (Goal("a", least=0.95, peers=("y",)), "goal a: ≥ 0.95 of y: 0.250, MISSED"),
        (Goal("a", 300), "goal a: ≤ 300: 2.000, met"),
        (Goal("a", peers=("y",)), "a: share of y: 0.250"),
        (Goal("a", 1, ("z",)), "goal a: ≤ 1 of z: not measured"),
        (Goal("b", 1), "goal b: ≤ 1: not measured"),
    ],
)
def test_a_goal_is_judged_by_the_largest_of_its_peers(goal: Goal, judgement: str) -> None:
    assert goal.judge(_figures(a={OURS: [2.0], "x": [4.0], "y": [8.0]})) == judgement


def test_raw_rounds_are_saved_and_a_dry_run_does_not_replace_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, values in (([], [1.0, 2.0]), (["--small"], [3.0])):
        chosen = report.arguments("x").parse_args(["--save", str(tmp_path), *words])
        report.show("pull", chosen, _figures(a={OURS: values}), [Goal("a", 1)])
    assert "goal a: ≤ 1: 3.000, MISSED" in capsys.readouterr().out
    assert json.loads((tmp_path / "pull.json").read_text())["rows"] == {"a": {OURS: [1.0, 2.0]}}
    assert json.loads((tmp_path / "pull-small.json").read_text())["rows"] == {"a": {OURS: [3.0]}}


def test_everybody_begins_in_turn() -> None:
    assert list(turns("abc", 2)) == ["a", "b", "c", "b", "c", "a"]
