"""What every check of containerd's configuration stands on: what it should say, and its tables, whatever is in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelvold.doctor.line import Group, copied

GROUP = Group("containerd")
#: Of our proxy plugin, and so of our snapshotter.
NAME = "modelvold"
OLDEST = (2, 1)
IMAGES, RUNTIME = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
TRANSFER = "io.containerd.transfer.v1.local"

Table = Mapping[str, Any]
Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ours:
    """What containerd should say: the daemon's socket, its store, its folder of hosts.toml files; and where to write it."""

    socket: Path
    store: Path
    hosts_dir: Path
    file: Path

    def mend(self, snippet: str) -> str:
        return f"in {self.file}, then `systemctl restart containerd`:\n{copied(snippet)}"


def at(table: Table, *keys: str) -> Table:
    """The table below `keys`; an empty one where there is none, or something else."""
    for key in keys:
        below = table.get(key)
        table = below if isinstance(below, dict) else {}
    return table


def text(table: Table, key: str) -> str:
    """Empty where there is none, or something else."""
    value = table.get(key)
    return value if isinstance(value, str) else ""


def quoted(value: object) -> str:
    """As it stands in TOML, nearly."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def texts(table: Table, key: str) -> list[str]:
    """The strings of a list; none where there is no list."""
    value = table.get(key)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
