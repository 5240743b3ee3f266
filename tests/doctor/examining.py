"""Runs `modelvold doctor` as an operator does, under whatever takes something away from it, and reads what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvold.cli.doctor import shown
from modelvold.doctor import Level, Line, Report

ROOT = Path(__file__).parents[2]
#: Without any containerd that the lab may have put there.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
HAS_CONTAINERD = shutil.which("containerd", path=f"/usr/local/sbin:/usr/local/bin:{PATH}:/opt/containerd/bin:/opt/bin")


@dataclass(frozen=True, slots=True)
class Examined:
    """`status` is the exit status, `errors` what went to standard error."""

    status: int
    report: Report
    errors: str

    def lines(self, what: str) -> list[Line]:
        return [line for line in self.report.lines if line.what == what]

    def line(self, what: str) -> Line:
        found = self.lines(what)
        assert len(found) == 1, (what, self.report.lines)
        return found[0]


def run(*words: object, under: Sequence[object] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """`modelvold doctor WORDS…`, after the words `under`."""
    command = [*under, sys.executable, "-m", "modelvold", "doctor", *words]
    return subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT / "daemon"), "PATH": PATH, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def examine(*words: object, under: Sequence[object] = (), **environment: str) -> Examined:
    ran = run("--json", *words, under=under, **environment)
    assert ran.stdout.count("\n") == 1, (ran.stdout, ran.stderr)
    said = json.loads(ran.stdout)
    assert set(said) == {"lines", "backend"}
    lines = tuple(Line(**{**line, "level": Level(line["level"])}) for line in said["lines"])
    report = Report(lines, said["backend"])
    check_form(report)
    assert ran.returncode == int(report.is_bad), ran.stderr
    return Examined(ran.returncode, report, ran.stderr)


def check_form(report: Report) -> None:
    """What holds for every report: it fits, and whatever is not well has a mend."""
    for line in report.lines:
        assert bool(line.mend) == (line.level is not Level.OK), line
    for text in shown(report):
        assert len(text) <= 80 or re.match(" {12}", text), text
