"""What the daemon does for an operator: the port through which `rpc.control` asks it.

Every method may raise any Failure, and is called from several threads. What takes long is an iterator, which ends early once
`cancelled()`; its last step is the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from modelvold.lending.report import Checked, Collected, Progress, Report, VolumeReport

Cancelled = Callable[[], bool]


class Lender(Protocol):
    def report(self, reference: str | None) -> Report:
        """The node and every volume, or the one of `reference`."""

    def mount(self, reference: str, directory: Path, cancelled: Cancelled) -> Iterator[Progress | VolumeReport]:
        """Show the model in `directory`, which is absolute and exists; the last step is the volume."""

    def unmount(self, directory: Path) -> None:
        """Undo a `mount`."""

    def pull(self, reference: str, cancelled: Cancelled) -> Iterator[Progress]:
        """Make every byte present, durable and verified; the first Progress is what was before, the last is `done`. What has begun goes
        on once it is `cancelled()`."""


class Keeper(Protocol):
    def remove(self, reference: str) -> int:
        """Forget the model; the bytes that the store gave back."""

    def pin(self, reference: str) -> None:
        """From now on the model is neither evicted nor forgotten."""

    def unpin(self, reference: str) -> None:
        """Undo a `pin`."""

    def collect(self, dry_run: bool) -> Sequence[Collected]:
        """Forget every model that nobody uses and nobody pinned; those that were, or for a `dry_run` would be."""


class Checker(Protocol):
    def verify(self, reference: str | None, repair: bool, cancelled: Cancelled) -> Iterator[Checked]:
        """Read durable segments again, of the model or of all, and take out of service those that are wrong; to `repair` is to
        fetch them again before it ends. The last Checked is `done`, whatever was found."""


class Operator(Lender, Keeper, Checker, Protocol):
    """All of it."""
