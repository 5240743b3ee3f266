"""What the start-up probe found, and which backend follows from it. Pure.

`auto` takes the best backend whose every line was seen to hold; a setting that names one takes that or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelvold.errors import Unsupported

LAZY, COMPLETE, DIRECTORY = "lazy", "complete", "directory"
#: The best first.
BACKENDS = (LAZY, COMPLETE, DIRECTORY)
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

    def missing(self, backend: str) -> tuple[Line, ...]:
        """The lines that keep `backend` from working here; none where it works."""
        return tuple(line for line in self.lines if not line.is_good and backend in line.needed_by)

    def reason(self, backend: str) -> str:
        """Why `backend` does not work here, in one line; empty where it does."""
        return "; ".join(f"{line.what}: {line.seen}" for line in self.missing(backend))

    def choose(self, wanted: str) -> tuple[str, str]:
        """The backend for the setting `wanted`, one of BACKENDS or "auto", and why it is that one.

        Raises Unsupported where it does not work here; for "auto" where none does.
        """
        if wanted != "auto":
            if self.missing(wanted):
                raise self._unsupported(wanted)
            return wanted, "as set"
        for backend in BACKENDS:
            if not self.missing(backend):
                better = BACKENDS[: BACKENDS.index(backend)]
                return backend, self.reason(better[-1]) if better else "seen working at start"
        raise self._unsupported(DIRECTORY)

    def _unsupported(self, backend: str) -> Unsupported:
        mends = list(dict.fromkeys(line.mend for line in self.missing(backend) if line.mend))
        return Unsupported(
            f"this machine cannot mount by the backend {backend}: {self.reason(backend)}",
            f"it takes {'; '.join(mends)}; see `modelvold doctor`",
        )
