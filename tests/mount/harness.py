"""A volume of four segments behind a real gate, its bytes brought by hand; readers are processes of their own.

The process of a gate must never read or map a volume itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from modelvold.layer.extent import CHUNK
from modelvold.layer.raw import toc_of_raw
from modelvold.linux import mounts
from modelvold.mount.backend import Volume
from modelvold.mount.gate import Gate
from modelvold.mount.handover import Handover
from modelvold.mount.lazy import Lazy
from modelvold.mount.questions import KernelQuestions
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store
from modelvold.volume.erofs import write_image
from modelvold.volume.tree import merge

from tests.lab.check import settled
from tests.lab.program import wait_until
from tests.store.keeping import add, extents, fill, fill_all

SEGMENTS = 4
DATA = os.urandom(SEGMENTS * CHUNK)
#: A page in segment 1.
PAGE = (CHUNK + 8192, 4096)

#: Prints, for each [offset, length], the digest of what was read there or the error's name; read-ahead and cache are put off.
_READER = """
import errno, hashlib, json, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
for offset, length in json.loads(sys.argv[2]):
    try:
        print(hashlib.sha256(os.pread(file, length, offset)).hexdigest(), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


class Bringer:
    """The gate's source of bytes (mount.port.Bytes): takes notes; the test brings."""

    def __init__(self) -> None:
        self.demands: list[int] = []
        self.releases: list[int] = []

    def demand(self, segment: Segment) -> None:
        self.demands.append(segment.number)

    def release(self, segment: Segment) -> None:
        self.releases.append(segment.number)


@dataclass
class Scene:
    store: Store
    content: Content
    bringer: Bringer
    volume: Volume
    run: Path
    note: str = ""
    has_gate: bool = False
    readers: list[subprocess.Popen[str]] = field(default_factory=list)
    questions: KernelQuestions = field(init=False)
    gate: Gate = field(init=False)
    backend: Lazy = field(init=False)

    @property
    def target(self) -> Path:
        return self.run / "volume"

    def open_gate(self, deadline: float, handover: Handover | None = None) -> None:
        self.questions = KernelQuestions(handover)
        self.gate = Gate(self.bringer, self.questions, deadline=deadline)
        self.gate.__enter__()
        self.has_gate = True
        self.store.watch(self.gate)
        self.backend = Lazy(self.gate, self.questions, self.store.root / "content", self.run / "store")

    def end_gate(self) -> None:
        if self.has_gate:
            self.has_gate = False
            self.gate.__exit__(None, None, None)

    def end_readers(self) -> None:
        for reader in self.readers:
            reader.kill()
            reader.communicate()

    def read(self, *pieces: tuple[int, int]) -> subprocess.Popen[str]:
        """A reader; `said` waits for it."""
        command = [sys.executable, "-I", "-S", "-c", _READER, str(self.target / "file"), json.dumps(pieces)]
        self.readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return self.readers[-1]

    def fill(self, number: int, count: int | None = None) -> None:
        fill(self.store, self.content.segments[number], DATA, count)

    def fill_all(self) -> None:
        fill_all(self.store, self.content, DATA)

    @property
    def second(self) -> Segment:
        """The segment that `PAGE` lies in."""
        return self.content.segments[1]

    def wait_for_reads(self, count: int) -> None:
        assert wait_until(lambda: len(self.gate.waiting(self.content.segments)) == count, 10), "reads that wait"


def said(reader: subprocess.Popen[str]) -> list[str]:
    output, _ = reader.communicate(timeout=30)
    return output.split()


def right(*pieces: tuple[int, int]) -> list[str]:
    return [sha256(DATA[offset : offset + length]).hexdigest() for offset, length in pieces]


@contextmanager
def scene(
    folder: Path, *, deadline: float = 20.0, keeper: AbstractContextManager[Handover] | None = None
) -> Iterator[Scene]:
    """A store with one content of four empty segments, mounted lazily; everything gone when it ends, what the `keeper` keeps last."""
    with settled(folder), ExitStack() as life:
        handover = life.enter_context(keeper) if keeper else None
        store = life.enter_context(Store(folder / "root"))
        content = add(store, DATA)
        cut = extents(len(DATA))
        image = write_image(merge([toc_of_raw("file", len(DATA), 0o444, 0)]), [cut])
        path = store.root / "volumes" / "one.erofs"
        path.write_bytes(image.bytes)
        volume = Volume("one", path, image.uuid, (content,))
        made = Scene(store, content, Bringer(), volume, folder / "run")
        made.target.mkdir(parents=True)
        made.open_gate(deadline, handover)
        life.callback(made.end_gate)
        made.backend.serve([])
        life.callback(made.backend.close_door)
        made.note = made.backend.mount(volume, made.target)
        life.callback(mounts.unmount, made.target, detach=True)
        life.callback(made.end_readers)
        yield made
