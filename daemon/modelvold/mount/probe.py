"""The start-up probe: what this machine has been seen to do, in a scratch folder of the store (facts: never by version number).

A volume of three segments, one full, one short, one empty, is mounted for real and read by a child process, since the gate's
process must not read a volume. Every line must hold for `lazy`; what fails is kept with what was seen.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelvold.errors import Failure
from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.layer.raw import toc_of_raw
from modelvold.linux import mounts
from modelvold.mount.backend import Volume
from modelvold.mount.gate import Gate
from modelvold.mount.lazy import Lazy
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import ContentRow, SegmentRow
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.volume.erofs import write_image
from modelvold.volume.tree import merge

log = logging.getLogger(__name__)

_READER = Path(__file__).with_name("probe_reader.py")
_SHORT = 300 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One thing tried: `is_good`, and in `seen` what was seen where it is not."""

    what: str
    is_good: bool
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    lines: tuple[Line, ...]

    @property
    def is_lazy_possible(self) -> bool:
        return all(line.is_good for line in self.lines)

    @property
    def reason(self) -> str:
        """Why not, in one line; empty where everything holds."""
        return "; ".join(f"{line.what}: {line.seen}" for line in self.lines if not line.is_good)


def probe(store: Path, run: Path) -> Findings:
    """Tries everything `lazy` rests on. Takes a few hundred milliseconds; leaves nothing behind."""
    lines: list[Line] = []
    try:
        with ExitStack() as life:
            scratch = Path(life.enter_context(_scratch(store)))
            trial = _Trial(scratch, run / f"probe-{os.getpid()}")
            life.callback(trial.close)
            for line in trial.lines():
                lines.append(line)
                if not line.is_good:
                    break
    except OSError as error:
        lines.append(Line("file-backed EROFS with pre-content events", False, str(error)))
    for line in lines:
        log.debug("probe what=%r good=%s seen=%r", line.what, line.is_good, line.seen)
    return Findings(tuple(lines))


@contextmanager
def _scratch(store: Path) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix=".probe-", dir=store)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Trial:
    """Bytes of the trial content are their megabyte's number plus one, so that a zero or a neighbour's byte is seen."""

    def __init__(self, scratch: Path, run: Path) -> None:
        self._scratch = scratch
        self._run = run
        self._target = run / "volume"
        self._gate = Gate(self, deadline=5)
        self._is_gate_open = False
        extents = tuple(Extent(ContentOffset(n * CHUNK), ContentOffset((n + 1) * CHUNK)) for n in range(4))
        row = ContentRow(0, Digest.of(b"probe"), Reading.RAW, "probe", 4 * CHUNK, "unverified", "")
        self._content = Content(scratch, row, (SegmentRow(n, extent, None) for n, extent in enumerate(extents)))
        image = write_image(merge([toc_of_raw("probe", 4 * CHUNK, 0o444, 0)]), [extents])
        self._image = scratch / "probe.erofs"
        self._image.write_bytes(image.bytes)
        self._volume = Volume("probe", self._image, image.uuid, (self._content,))
        self._backend = Lazy(self._gate, scratch / "content", run / "store")

    def demand(self, segment: Segment) -> None:
        """The probe is its own bringer of bytes."""
        if segment.number < 3:
            self._fill(segment, segment.length)
            self._gate.on_grown(segment)
        else:
            self._gate.on_failed([segment], Failure("probe: left missing on purpose"))

    def release(self, segment: Segment) -> None:
        pass

    def lines(self) -> Iterator[Line]:
        self._content.folder().mkdir(parents=True)
        self._target.mkdir(parents=True)
        for segment in self._content.segments:
            segment.path.touch(0o600)
            segment.inode = segment.path.stat().st_ino
        full, second, short, _ = self._content.segments
        self._fill(full, full.length)
        self._fill(second, second.length)
        self._fill(short, _SHORT)
        try:
            self._gate.__enter__()
        except OSError as error:
            yield Line("fanotify pre-content events", False, str(error))
            return
        self._is_gate_open = True
        try:
            self._backend.adopt([])
            opened_through = self._backend.mount(self._volume, self._target)
        except OSError as error:
            yield Line("file-backed EROFS behind a marked mount", False, str(error))
            return
        yield Line("file-backed EROFS behind a marked mount", True)
        yield self._expect("read across two segments", [("read", CHUNK - 4096, 8192)], ["ok"])
        yield self._expect(
            "a denied read is EIO, mapped SIGBUS",
            [("read", 3 * CHUNK, 4096), ("map", 3 * CHUNK, 4096)],
            ["EIO", "SIGBUS"],
        )
        self._gate.__exit__(None, None, None)
        self._is_gate_open = False
        beyond = 2 * CHUNK + _SHORT + (256 << 10)
        asked = [
            ("read", beyond, 4096),
            ("map", beyond, 4096),
            ("read", beyond, 4096),
            ("read", 3 * CHUNK, 4096),
            ("read", 2 * CHUNK, 4096),
        ]
        yield self._expect("beyond a segment's end is EIO, never zeros", asked, ["EIO", "SIGBUS", "EIO", "EIO", "ok"])
        self._gate = Gate(self, deadline=5)
        self._gate.__enter__()
        self._is_gate_open = True
        Lazy(self._gate, self._scratch / "content", self._run / "store").adopt([(self._volume, opened_through)])
        yield self._expect(
            "missing bytes are asked for, and a new gate serves the same mount",
            [("read", beyond, 4096), ("map", beyond, 4096)],
            ["ok", "ok"],
        )
        before = self._gate.events
        yield Line("the kernel raised events", before > 0, f"{before} events")

    def close(self) -> None:
        """Readers first, then mounts, then the gate: nothing is asked that nobody answers."""
        for point in (self._target, self._run / "store"):
            if point.is_dir() and str(point) in {entry.mount_point for entry in mounts.mountinfo()}:
                mounts.unmount(point, detach=True)
        if self._is_gate_open:
            self._gate.__exit__(None, None, None)
        shutil.rmtree(self._run, ignore_errors=True)

    def _fill(self, segment: Segment, length: int) -> None:
        with segment.writer() as writer:
            writer.append(memoryview(bytes([segment.number + 1]) * (length - segment.present)))

    def _expect(self, what: str, asked: list[tuple[str, int, int]], expected: list[str]) -> Line:
        command = [sys.executable, "-I", "-S", str(_READER), str(self._target / "probe"), json.dumps(asked)]
        try:
            answer = subprocess.run(command, capture_output=True, timeout=20, check=True, text=True)
        except (subprocess.SubprocessError, OSError) as error:
            return Line(what, False, f"the reader failed: {error}")
        seen = json.loads(answer.stdout)
        return Line(what, seen == expected, f"expected {expected}, saw {seen}")
