"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.fault.registries import FAULTS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text()


def test_every_test_it_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) >= 25
    assert named <= there, named - there


def test_every_registry_fault_it_names_exists() -> None:
    named = set(re.findall(r"`\[([^\]]+)\]`", TEXT))
    assert len(named) > 20
    assert named <= set(FAULTS), named - set(FAULTS)
