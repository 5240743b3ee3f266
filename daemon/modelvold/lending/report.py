"""What a person is told of a volume and of the node. Values only; bytes and seconds throughout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaitingRead:
    """A read that the kernel holds until its bytes are here. `command` is the thread's name, never its command line."""

    pid: int
    command: str
    seconds: float


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """`present`, `durable` and `verified` count bytes of `size`; `rate` is bytes a second over the last few seconds, and `eta`
    seconds at that rate, negative where unknown. `consumers` name who keeps it from being removed."""

    id: str
    reference: str
    manifest: str
    state: str  # lazy | fetching | complete | verified | quarantined | failing
    backend: str
    path: str
    size: int
    present: int
    durable: int
    verified: int
    segments: int
    segments_complete: int
    rate: float
    eta: float
    waiting: tuple[WaitingRead, ...]
    consumers: tuple[str, ...]
    last_error: str


@dataclass(frozen=True, slots=True)
class NodeReport:
    version: str
    backend: str
    backend_reason: str
    store: str
    store_state: str  # ok | failing: <why>
    store_used: int
    disk_total: int
    disk_free: int
    memory: int
    uptime: float
    facade: str
    prefetch: bool
    events: int
    reads_denied: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Report:
    node: NodeReport
    volumes: tuple[VolumeReport, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of making a volume complete. Counts bytes; `done` only when every byte is present, durable and verified."""

    reference: str
    size: int
    present: int
    durable: int
    verified: int
    rate: float
    done: bool
