"""User namespaces: how labels say that a snapshot's owners are shifted. Pure.

containerd writes one label for user ids and one for group ids, each `container:host:length`, with commas between several. Its mount
code takes the same text as the options `uidmap=` and `gidmap=`, and maps an overlay's lower folders by them; what is written goes to
the upper as the host sees it, so that the upper belongs to the host's id for root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelvold.errors import InvalidInput

LABEL_UIDS = "containerd.io/snapshot/uidmapping"
LABEL_GIDS = "containerd.io/snapshot/gidmapping"

_RANGES = re.compile(r"\d{1,10}:\d{1,10}:\d{1,10}(,\d{1,10}:\d{1,10}:\d{1,10}){0,339}")  # user_namespaces(7)
_MOST = 1 << 32


@dataclass(frozen=True, slots=True)
class IdMap:
    """`root`: the host's user and group ids for root in the container."""

    uids: str
    gids: str
    root: tuple[int, int]

    @property
    def options(self) -> tuple[str, str]:
        return f"uidmap={self.uids}", f"gidmap={self.gids}"


def id_map(labels: Mapping[str, str]) -> IdMap | None:
    """None where nothing is shifted. Raises InvalidInput for labels that cannot be honoured."""
    if LABEL_UIDS not in labels and LABEL_GIDS not in labels:
        return None
    uids, gids = labels.get(LABEL_UIDS, ""), labels.get(LABEL_GIDS, "")
    return IdMap(uids, gids, (_host_root(LABEL_UIDS, uids), _host_root(LABEL_GIDS, gids)))


def _host_root(label: str, ranges: str) -> int:
    if not _RANGES.fullmatch(ranges):
        raise InvalidInput(f"label {label}={ranges[:200]!r}: not of the form container:host:length[,…]")
    parsed = [tuple(int(number) for number in each.split(":")) for each in ranges.split(",")]
    for first, host, length in parsed:
        if not length or max(first, host) + length > _MOST:
            raise InvalidInput(f"label {label}={ranges[:200]!r}: {first}:{host}:{length} is no range of ids")
    root = next((host for first, host, _ in parsed if first == 0), None)
    if root is None:
        raise InvalidInput(f"label {label}={ranges[:200]!r}: it does not say who is root")
    return root
