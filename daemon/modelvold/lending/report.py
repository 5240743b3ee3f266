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
    seconds at that rate, negative where unknown. `consumers` name who keeps it from being removed. `used`: seconds since somebody
    had it, 0 while somebody has, negative where unknown. `poisoned` name the programs that have wrong bytes of it in their memory,
    mapped, and must be restarted; `stranded` those whose mount of it is dead, likewise.
    *Streaming* is what does not fit: it is read through, and what was read goes."""

    id: str
    reference: str
    manifest: str
    state: str  # lazy | streaming | fetching | complete | verified | quarantined | failing
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
    pinned: bool = False
    used: float = -1.0
    poisoned: tuple[str, ...] = ()
    stranded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeReport:
    """`quota` and `reserve` in bytes of this disk, 0 for none; `room`: bytes that could still be written with nothing evicted for
    them, negative where the bounds are passed already. `evicted` and `wrong_segments` count since the start. `not_durable` says why
    what is recorded may not survive a power cut, and is empty where it does. `scrubbed`: seconds since all that is here was read
    again, negative: it never was. `snapshots` are containerd's, and those `in_use` containers', and pods' image volumes.
    """

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
    quota: int = 0
    reserve: int = 0
    room: int = 0
    evicted: int = 0
    not_durable: str = ""
    scrubbed: float = -1.0
    wrong_segments: int = 0
    snapshots: int = 0
    snapshots_in_use: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    node: NodeReport
    volumes: tuple[VolumeReport, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of making a volume complete. Counts bytes; `done` only when every byte is present, durable and verified. `rate` is
    bytes a second over the last seconds, `eta` seconds until every byte is present, negative where unknown."""

    reference: str
    size: int
    present: int
    durable: int
    verified: int
    rate: float
    done: bool
    eta: float = -1.0


@dataclass(frozen=True, slots=True)
class Collected:
    """A model that was, or would be, forgotten because nobody uses and nobody pinned it, and the `bytes` that gives back."""

    reference: str
    manifest: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Checked:
    """One step of reading durable segments again, of the model `reference` or, where that is empty, of all: `read` of `size` bytes.

    `wrong` counts segments whose bytes are not those recorded, which are out of service from then on; `repaired` those of them that
    were fetched again and are right. `done` only when all was read, and fetched where it was to be.
    """

    reference: str
    size: int
    read: int
    wrong: int
    repaired: int
    rate: float
    done: bool
