"""The snapshotter's benches run: the smallest sizes, one round. Each prints its table and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import debian, needs
from tests.lab.check import settled

pytestmark = pytest.mark.system

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where a bench makes its folders: a short path, since sockets are in it. Nothing may be there when it has ended."""
    try:
        debian.docker_registry(), debian.containerd(), debian.runc(), debian.busybox()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    made = Path(tempfile.mkdtemp(prefix="mv-"))
    try:
        if missing := needs.missing_for_lazy(made):
            pytest.skip(missing)
        with settled(made):
            yield made
        assert list(made.iterdir()) == []
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize(
    ("bench", "words", "columns", "rows", "goals"),
    [
        ("verbs", ["--without-go"], ["overlayfs"], 21 + 22, 0),
        ("pull_run", [], ["overlayfs"], 3, 1),
    ],
)
def test_runs(
    temporary: Path, tmp_path: Path, bench: str, words: list[str], columns: list[str], rows: int, goals: int
) -> None:
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
    assert sum(line.startswith("goal ") and line.endswith(("met", "MISSED")) for line in said) == goals, ran.stdout
    saved = json.loads((tmp_path / f"{bench}-small.json").read_text())
    assert len(saved["rows"]) == rows
    assert {who for row in saved["rows"].values() for who in row} == {"modelvold", *columns}
    assert all(value > 0 for row in saved["rows"].values() for values in row.values() for value in values)
