"""Every bench runs: the smallest sizes, one round. It prints its table and leaves nothing; its figures are nobody's business here."""

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
        debian.docker_registry(), debian.nginx(), debian.containerd(), debian.runc()
        debian.oras(), debian.crane(), debian.aria2c(), debian.real_model()
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
    ("bench", "columns", "goals"),
    [
        ("pull", ["containerd", "oras", "crane", "write+fsync", "recv+write", "sha256"], 8),
        ("limited", ["aria2c", "containerd", "oras"], 3),
        ("far", ["oras", "oras, 16 at once", "crane", "one GET"], 4),
        ("cost", ["sha256", "copy", "sha256 + copy"], 7),
    ],
)
def test_runs(temporary: Path, tmp_path: Path, bench: str, columns: list[str], goals: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.{bench}", "--small", "--rounds", "1", "--save", tmp_path],
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
    head = next(line for line in said if line.startswith("  "))
    assert head.split() == ["modelvold", *" ratio ".join([*columns, ""]).split()]
    saved = json.loads((tmp_path / f"{bench}-small.json").read_text())
    assert saved["rows"]
    for row, values in saved["rows"].items():
        assert len(next(line for line in said if line.startswith(row)).split()) > len(row.split()), (
            "a figure of each row"
        )
        assert all(value >= 0 for taken in values.values() for value in taken)
    assert sum(line.startswith("goal ") and line.endswith(("met", "MISSED")) for line in said) == goals
