"""What this room needs of others: volumes to show, and the proof that labels are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.oci.synthetic import GivenSynthetic


class Volumes(Protocol):
    """Models as mounted trees. Called from many threads at once."""

    def open(self, repository: Repository, original: Digest, reference: str, wait: float) -> str:
        """The id of the volume of the model whose manifest is `original`, made if need be. `reference` is how it was
        asked for, for people. Blocks at most `wait` seconds and then raises NotYet, while the work goes on; the same
        call again joins it. Raises any Failure that keeps the model from being mounted."""
        ...

    def mounted(self, volume_id: str) -> Path:
        """Where the volume is mounted, read-only, after making sure that it is. Local and quick. Raises NotFound for
        an id that is not known."""
        ...

    def unmount_unused(self, in_use: set[str]) -> None:
        """Unmounts the volumes that no snapshot (`in_use`) and nobody else uses. One that is busy stays; nothing is
        raised for it."""
        ...


class Proofs(Protocol):
    def synthetic_of(self, digest: Digest) -> GivenSynthetic | None:
        """What this node's façade gave under the manifest digest `digest`, or None if it never did."""
        ...
