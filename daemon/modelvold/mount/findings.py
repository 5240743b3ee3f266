"""What the start-up probe found, and which backend follows from it. Pure.

`auto` takes the best backend whose every line was seen to hold; a setting that names one takes that or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelvold.errors import Unsupported

LAZY, FUSE, COMPLETE, DIRECTORY = "lazy", "fuse", "complete", "directory"
#: The best first.
BACKENDS = (LAZY, FUSE, COMPLETE, DIRECTORY)
#: A line that no backend needs: without it `directory` shows a volume by a symbolic link.
BINDS = "bind mounts"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing tried. `seen` is what was seen where it is not as it should be; `mend` is what would make it so;
    `needed_by` are the backends that cannot do without."""

    what: str
    is_good: bool
    needed_by: frozenset[str]
    seen: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """Lines in the order tried. A line that was not reached because an earlier one failed is not there."""

    lines: tuple[Line, ...]

    @property
    def can_bind(self) -> bool:
        return any(line.what == BINDS and line.is_good for line in self.lines)

    def missing(self, *backends: str) -> tuple[Line, ...]:
        """The lines that keep each of `backends` from working here; none where they work."""
        return tuple(line for line in self.lines if not line.is_good and line.needed_by & {*backends})

    def works(self, backend: str) -> bool:
        """Whether it was tried and every line was seen to hold."""
        return not self.missing(backend) and any(backend in line.needed_by for line in self.lines)

    def reason(self, *backends: str) -> str:
        """Why `backends` do not work here, in one line; empty where they do."""
        return "; ".join(f"{line.what}: {line.seen}" for line in self.missing(*backends))

    def choose(self, wanted: str) -> tuple[str, str]:
        """The backend for the setting `wanted`, one of BACKENDS or "auto", and why it is that one.

        Raises Unsupported where it does not work here; for "auto" where none does.
        """
        if wanted != "auto":
            if self.missing(wanted):
                raise self._unsupported(wanted)
            return wanted, "as set"
        for number, backend in enumerate(BACKENDS):
            if self.works(backend):
                return backend, self.reason(*BACKENDS[:number]) or "seen working at start"
        raise self._unsupported(DIRECTORY)

    def _unsupported(self, backend: str) -> Unsupported:
        mends = list(dict.fromkeys(line.mend for line in self.missing(backend) if line.mend))
        return Unsupported(
            f"this machine cannot mount by the backend {backend}: {self.reason(backend)}",
            f"it takes {'; '.join(mends)}; see `modelvold doctor`",
        )
