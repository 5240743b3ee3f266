"""Every bench runs: the smallest sizes, one round. It prints its table and leaves nothing; its figures are nobody's business here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("bench", "words", "columns", "goals"),
    [
        ("pull", [], ["containerd", "oras", "crane", "write+fsync", "recv+write", "sha256"], 8),
        ("limited", [], ["aria2c", "containerd", "oras"], 3),
        ("far", [], ["oras", "oras, 16 at once", "crane", "one GET"], 4),
        ("cost", [], ["sha256", "copy", "sha256 + copy"], 7),
        ("lazy", ["--without-soci"], ["pull", "pull + read"], 2),
        ("demand", [], ["no yielding", "in turn", "alone + 20 ms"], 4),
        ("reading", [], ["plain file", "idle"], 13),
        ("headers", ["--without-soci"], [], 2),
        ("verbs", ["--without-go"], ["overlayfs"], 0),
        ("pull_run", [], ["overlayfs"], 1),
        ("fuse", ["--without-soci"], ["lazy", "plain"], 6),
    ],
)
def test_runs(temporary: Path, tmp_path: Path, bench: str, words: list[str], columns: list[str], goals: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.{bench}", "--small", "--rounds", "1", "--save", tmp_path, *words],
        cwd=_ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said[0].startswith("machine: ")
    assert any(line.split() == ["modelvold", *" ratio ".join([*columns, ""]).split()] for line in said), ran.stdout
    saved = json.loads((tmp_path / f"{bench}-small.json").read_text())
    assert saved["rows"]
    for row, values in saved["rows"].items():
        line = next(line for line in said if line.startswith(row))
        assert len(line.split()) > len(row.split()), "a figure of each row"
        assert all(value >= 0 for taken in values.values() for value in taken)
    assert sum(line.startswith("goal ") and line.endswith(("met", "MISSED")) for line in said) == goals
