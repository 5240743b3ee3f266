"""What the doctor says: one line a check. Values only.

Rules: `what` is a name that stays the same, `seen` what was found, `mend` what to do about it; whatever is not ok has one.
In `mend`, lines that begin with four spaces are to be copied as they are; all others are prose.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """`WARN`: it works, but less well or less safely than it could, or could not be looked at. `BAD`: it does not work."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    group: str
    level: Level
    what: str
    seen: str
    mend: str


@dataclass(frozen=True, slots=True)
class Report:
    """`backend`: how models are mounted on this machine; empty where they cannot be."""

    lines: tuple[Line, ...]
    backend: str

    @property
    def is_bad(self) -> bool:
        return any(line.level is Level.BAD for line in self.lines)


@dataclass(frozen=True, slots=True)
class Group:
    """Makes the lines of one subject."""

    name: str

    def ok(self, what: str, seen: str = "") -> Line:
        return Line(self.name, Level.OK, what, seen, "")

    def warn(self, what: str, seen: str, mend: str) -> Line:
        return Line(self.name, Level.WARN, what, seen, mend)

    def bad(self, what: str, seen: str, mend: str) -> Line:
        return Line(self.name, Level.BAD, what, seen, mend)


def copied(text: str) -> str:
    """`text`, whatever its indentation, as lines of a `mend` that are to be copied as they are."""
    return textwrap.indent(textwrap.dedent(text).strip("\n"), "    ", lambda _: True)
