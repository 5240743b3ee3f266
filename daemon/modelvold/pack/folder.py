"""A folder → an artifact in memory and the files its layers are: what `push` takes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from modelvold.errors import InvalidInput
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Role
from modelvold.pack.artifact import Artifact, Entry, build, rfc3339
from modelvold.pack.classify import role_of
from modelvold.pack.describe import describe
from modelvold.pack.read import Stop, blocks, digest_of, in_parallel
from modelvold.pack.walk import Found, Skipped, walk

log = logging.getLogger(__name__)

#: One core hashes 1 to 2 GB/s, which is what one disk gives; more threads only make it seek.
_MOST_HASHING = 4
_LARGEST_CONFIG_JSON = 4 << 20


class Doing(Enum):
    """What a step did with its bytes: hashed them, sent them, or found that the registry holds them already."""

    HASHED = "hashed"
    SENT = "sent"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class Step:
    """`size` more bytes of the file at `path`; negative when bytes sent in vain will be sent again."""

    doing: Doing
    path: str
    size: int


OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Packed:
    """`files` has the file on disk of every blob that is a layer."""

    artifact: Artifact
    files: dict[Digest, Found]
    skipped: tuple[Skipped, ...]


def pack(folder: Path, name: str, on_step: OnStep = lambda _: None) -> Packed:
    """The artifact of all files below `folder`, called `name`. `on_step` is called by one thread at a time.

    Raises InvalidInput for a folder that cannot be packed, Refused for a file that changes meanwhile.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: not a folder", "name the folder that holds the model's files")
    walked = walk(folder)
    stop, lock = Stop(), threading.Lock()  # the lock lets one thread at a time call on_step

    def hash_one(found: Found) -> Entry:
        def on_bytes(size: int) -> None:
            with lock:
                on_step(Step(Doing.HASHED, found.path, size))

        digest = digest_of(found, stop, on_bytes)
        return Entry(found.path, role_of(found.path, found.size), digest, found.size, found.mode, found.mtime)

    threads = min(_MOST_HASHING, os.cpu_count() or 1)
    entries = in_parallel(hash_one, walked.files, threads, stop, "pack-hash")
    description = describe(name, rfc3339(time.time_ns() // 10**9 * 10**9), _kinds(entries), _config_json(walked.files))
    artifact = build(entries, description)
    log.info("packed folder=%s files=%d bytes=%d manifest=%s", folder, len(entries), artifact.size, artifact.digest)
    files = {entry.digest: found for entry, found in zip(entries, walked.files, strict=True)}
    return Packed(artifact, files, walked.skipped)


def _kinds(entries: list[Entry]) -> list[tuple[str, Role, int]]:
    return [(entry.path, entry.role, entry.size) for entry in entries]


def _config_json(files: tuple[Found, ...]) -> bytes | None:
    """The model's own `config.json`, by the convention of every engine at the top of its folder."""
    found = next((found for found in files if found.path == "config.json"), None)
    if found is None or found.size > _LARGEST_CONFIG_JSON:
        return None
    return b"".join(bytes(block) for block in blocks(found, Stop()))
