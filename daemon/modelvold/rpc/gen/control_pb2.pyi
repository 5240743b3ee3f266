from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("node", "volumes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    node: Node
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("version", "backend", "backend_reason", "store", "store_state", "store_used", "disk_total", "disk_free", "memory", "uptime", "facade", "prefetch", "events", "reads_denied", "last_error", "quota", "reserve", "room", "evicted", "not_durable", "scrubbed", "wrong_segments", "snapshots", "snapshots_in_use")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    STORE_STATE_FIELD_NUMBER: _ClassVar[int]
    STORE_USED_FIELD_NUMBER: _ClassVar[int]
    DISK_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    FACADE_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    READS_DENIED_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    NOT_DURABLE_FIELD_NUMBER: _ClassVar[int]
    SCRUBBED_FIELD_NUMBER: _ClassVar[int]
    WRONG_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_IN_USE_FIELD_NUMBER: _ClassVar[int]
    version: str
    backend: str
    backend_reason: str
    store: str
    store_state: str
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
    quota: int
    reserve: int
    room: int
    evicted: int
    not_durable: str
    scrubbed: float
    wrong_segments: int
    snapshots: int
    snapshots_in_use: int
    def __init__(self, version: _Optional[str] = ..., backend: _Optional[str] = ..., backend_reason: _Optional[str] = ..., store: _Optional[str] = ..., store_state: _Optional[str] = ..., store_used: _Optional[int] = ..., disk_total: _Optional[int] = ..., disk_free: _Optional[int] = ..., memory: _Optional[int] = ..., uptime: _Optional[float] = ..., facade: _Optional[str] = ..., prefetch: _Optional[bool] = ..., events: _Optional[int] = ..., reads_denied: _Optional[int] = ..., last_error: _Optional[str] = ..., quota: _Optional[int] = ..., reserve: _Optional[int] = ..., room: _Optional[int] = ..., evicted: _Optional[int] = ..., not_durable: _Optional[str] = ..., scrubbed: _Optional[float] = ..., wrong_segments: _Optional[int] = ..., snapshots: _Optional[int] = ..., snapshots_in_use: _Optional[int] = ...) -> None: ...

class WaitingRead(_message.Message):
    __slots__ = ("pid", "command", "seconds")
    PID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    command: str
    seconds: float
    def __init__(self, pid: _Optional[int] = ..., command: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Volume(_message.Message):
    __slots__ = ("id", "reference", "manifest", "state", "backend", "path", "size", "present", "durable", "verified", "segments", "segments_complete", "rate", "eta", "waiting", "consumers", "last_error", "pinned", "used", "poisoned", "stranded")
    ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CONSUMERS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    POISONED_FIELD_NUMBER: _ClassVar[int]
    STRANDED_FIELD_NUMBER: _ClassVar[int]
    id: str
    reference: str
    manifest: str
    state: str
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
    waiting: _containers.RepeatedCompositeFieldContainer[WaitingRead]
    consumers: _containers.RepeatedScalarFieldContainer[str]
    last_error: str
    pinned: bool
    used: float
    poisoned: _containers.RepeatedScalarFieldContainer[str]
    stranded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., reference: _Optional[str] = ..., manifest: _Optional[str] = ..., state: _Optional[str] = ..., backend: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., present: _Optional[int] = ..., durable: _Optional[int] = ..., verified: _Optional[int] = ..., segments: _Optional[int] = ..., segments_complete: _Optional[int] = ..., rate: _Optional[float] = ..., eta: _Optional[float] = ..., waiting: _Optional[_Iterable[_Union[WaitingRead, _Mapping]]] = ..., consumers: _Optional[_Iterable[str]] = ..., last_error: _Optional[str] = ..., pinned: _Optional[bool] = ..., used: _Optional[float] = ..., poisoned: _Optional[_Iterable[str]] = ..., stranded: _Optional[_Iterable[str]] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("reference", "directory")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    reference: str
    directory: str
    def __init__(self, reference: _Optional[str] = ..., directory: _Optional[str] = ...) -> None: ...

class MountStep(_message.Message):
    __slots__ = ("progress", "volume")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    volume: Volume
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class UnmountRequest(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class UnmountResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("reference", "size", "present", "durable", "verified", "rate", "done", "eta")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    reference: str
    size: int
    present: int
    durable: int
    verified: int
    rate: float
    done: bool
    eta: float
    def __init__(self, reference: _Optional[str] = ..., size: _Optional[int] = ..., present: _Optional[int] = ..., durable: _Optional[int] = ..., verified: _Optional[int] = ..., rate: _Optional[float] = ..., done: _Optional[bool] = ..., eta: _Optional[float] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("freed",)
    FREED_FIELD_NUMBER: _ClassVar[int]
    freed: int
    def __init__(self, freed: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class Collected(_message.Message):
    __slots__ = ("reference", "manifest", "bytes")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    reference: str
    manifest: str
    bytes: int
    def __init__(self, reference: _Optional[str] = ..., manifest: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class CollectResponse(_message.Message):
    __slots__ = ("collected", "freed")
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    collected: _containers.RepeatedCompositeFieldContainer[Collected]
    freed: int
    def __init__(self, collected: _Optional[_Iterable[_Union[Collected, _Mapping]]] = ..., freed: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("reference", "repair")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    reference: str
    repair: bool
    def __init__(self, reference: _Optional[str] = ..., repair: _Optional[bool] = ...) -> None: ...

class Checked(_message.Message):
    __slots__ = ("reference", "size", "read", "wrong", "repaired", "rate", "done")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    size: int
    read: int
    wrong: int
    repaired: int
    rate: float
    done: bool
    def __init__(self, reference: _Optional[str] = ..., size: _Optional[int] = ..., read: _Optional[int] = ..., wrong: _Optional[int] = ..., repaired: _Optional[int] = ..., rate: _Optional[float] = ..., done: _Optional[bool] = ...) -> None: ...
