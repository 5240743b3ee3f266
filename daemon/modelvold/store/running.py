"""The running digest of a content: sha256 of its bytes from the first on, as far as they have been hashed.

    segments   ████████ ████████ █████▒▒▒ ░░░░░░░░ ▒▒▒▒░░░░      █ hashed   ▒ present   ░ missing
                                      ▲ position

It goes on over a piece just appended, where that begins at its position and nobody else is at it (`follow`), or over what lies
in the segment files behind its position (`read_on`); it never waits for what is missing. Of every segment it has hashed it
keeps the generation, taken before the first byte: where one has another by now, its bytes are gone, and the digest goes
back to a copy of its state from before them.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable

from modelvold.store.content import Content
from modelvold.store.segment import Segment, Writer

#: Segments from one lasting copy to the next: what goes back hashes a gibibyte once more at most, and the copies of a model of 700 GB
#: take less than a megabyte.
_STRIDE = 32


class Stamp:
    """Which bytes a digest was taken of: of each segment the generation. It speaks of what is there as long as it `holds`."""

    def __init__(self, content: Content, generations: list[int]) -> None:
        self._content = content
        self._generations = generations

    @property
    def holds(self) -> bool:
        """To be asked while nothing is recorded and nothing leaves."""
        return all(
            segment.durable and not segment.leaving and segment.generation == generation
            for segment, generation in zip(self._content.segments, self._generations, strict=True)
        )


class RunningDigest:
    """Thread-safe. What is asked without the lock (`is_at`, `is_behind`, `is_at_end`) was so a moment ago."""

    __slots__ = ("_content", "_generations", "_kept", "_lock", "_position", "_state")

    def __init__(self, content: Content) -> None:
        self._content = content
        self._lock = threading.Lock()  # guards all below; held while bytes are hashed
        self._state = hashlib.sha256()
        self._position = (0, 0)  # a segment's number, and the bytes hashed of it: replaced as one
        self._generations: list[int] = []  # of the segments before it, and of its own once a byte of that is hashed
        self._kept = [(0, self._state.copy())]  # where segments begin: each _STRIDE-th, and the one it is in

    def is_at(self, segment: Segment) -> bool:
        return self._position[0] == segment.number

    @property
    def is_at_end(self) -> bool:
        return self._position[0] == len(self._content.segments)

    @property
    def is_behind(self) -> bool:
        """Whether it could go on, or must go back, where it is."""
        number, offset = self._position
        if number == len(self._content.segments):
            return False
        segment = self._content.segments[number]
        return segment.filled > offset or (offset > 0 and self._generations[number:] != [segment.generation])

    def follow(self, writer: Writer, piece: memoryview) -> int:
        """Goes on over the `piece` that `writer` has just appended, unless it is elsewhere or somebody is at it. The bytes hashed."""
        begins = (writer.segment.number, writer.segment.filled - len(piece))
        if self._position != begins or not self._lock.acquire(blocking=False):
            return 0
        try:
            if self._position != begins or not self._is_of(writer.generation):
                return 0
            self._state.update(piece)
            self._move(len(piece))
            return len(piece)
        finally:
            self._lock.release()

    def read_on(self, buffer: memoryview, is_ending: Callable[[], bool]) -> int:
        """Goes on over what is present of the segment that it is in. How many bytes that were: none where they are missing, or where
        it is at the end. Raises OSError."""
        with self._lock:
            number, offset = self._position
            if offset and self._generations[number] != self._content.segments[number].generation:
                self._go_back()
                number, offset = self._position
            if self.is_at_end or self._content.segments[number].filled <= offset:
                return 0
            return self._read(self._content.segments[number], buffer, is_ending)

    def go_back(self) -> bool:
        """Before the first segment whose bytes are others by now. False where they are all the same."""
        with self._lock:
            return self._go_back()

    def found(self) -> tuple[str, Stamp]:
        """The digest of what it has hashed, in hexadecimal, and what that was. To be asked at the end."""
        with self._lock:
            return self._state.hexdigest(), Stamp(self._content, list(self._generations))

    def _is_of(self, generation: int) -> bool:
        """Whether bytes of this generation of the segment it is in may follow."""
        number, offset = self._position
        if not offset:
            self._generations[number:] = [generation]
        return self._generations[number] == generation

    def _read(self, segment: Segment, buffer: memoryview, is_ending: Callable[[], bool]) -> int:
        """What comes of a later generation than the one noted is hashed for nothing."""
        generation, (_, begin) = segment.generation, self._position
        self._is_of(generation)
        offset = begin
        with segment.path.open("rb", buffering=0) as file:
            while (left := segment.filled - offset) > 0 and not is_ending():
                got = os.preadv(file.fileno(), [buffer[:left]], offset)
                if got:
                    self._state.update(buffer[:got])
                elif segment.generation == generation:
                    got = left  # somebody else has cut the file: without these bytes the digest is another
                else:
                    break
                offset += got
                self._move(got)
        return offset - begin

    def _move(self, count: int) -> None:
        number, offset = self._position
        if offset + count < self._content.segments[number].length:
            self._position = (number, offset + count)
            return
        if self._kept[-1][0] % _STRIDE:
            self._kept.pop()
        self._kept.append((number + 1, self._state.copy()))
        self._position = (number + 1, 0)

    def _go_back(self) -> bool:
        pairs = zip(self._generations, self._content.segments, strict=False)
        changed = next((segment.number for generation, segment in pairs if segment.generation != generation), None)
        if changed is None:
            return False
        while self._kept[-1][0] > changed:
            self._kept.pop()
        number, state = self._kept[-1]
        self._state = state.copy()
        del self._generations[number:]
        self._position = (number, 0)
        return True
