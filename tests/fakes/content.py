"""Contents for tests: bytes that are held, and bytes that are made when read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from modelvold.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Generated:
    """A blob that is made when read: `read(offset, length)` gives exactly those bytes."""

    size: int
    read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, content: bytes) -> Generated:
        return cls(len(content), lambda offset, length: content[offset : offset + length])

    def digest(self) -> Digest:
        """Reads all of it once."""
        whole = hashlib.sha256()
        for offset in range(0, self.size, 1 << 20):
            whole.update(self.read(offset, min(1 << 20, self.size - offset)))
        return Digest(whole.hexdigest())


def generated(size: int, seed: int = 0) -> Generated:
    """`size` bytes of no pattern that differ from seed to seed, in no memory."""

    def block(number: int) -> bytes:
        return hashlib.shake_128(b"%d/%d" % (seed, number)).digest(4096)

    def read(offset: int, length: int) -> bytes:
        first, last = offset // 4096, (offset + length + 4095) // 4096
        whole = b"".join(block(number) for number in range(first, last))
        return whole[offset - first * 4096 :][:length]

    return Generated(size, read)
