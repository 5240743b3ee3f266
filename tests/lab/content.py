"""Bytes for models: what a file of a pushed model is made of, and large content made from a seed instead of read.

A `Generated` of any size costs no memory and any part of it can be had alone (AES in counter mode over zeros), so a
test compares what it read from the middle of a model with `at()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_STEP = 1 << 20
_CELL = 16


@dataclass(frozen=True, slots=True)
class Generated:
    """`size` bytes that depend on `seed` alone, incompressible."""

    size: int
    seed: int

    def at(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), cut at the end."""
        length = max(0, min(length, self.size - offset))
        cell, before = divmod(offset, _CELL)
        counter = ((self.seed << 64) + cell).to_bytes(16, "big")
        stream = Cipher(algorithms.AES(bytes(16)), modes.CTR(counter)).encryptor()
        return stream.update(bytes(before + length))[before:]

    def blocks(self) -> Iterator[bytes]:
        zeros = bytes(_STEP)
        stream = Cipher(algorithms.AES(bytes(16)), modes.CTR((self.seed << 64).to_bytes(16, "big"))).encryptor()
        for offset in range(0, self.size, _STEP):
            yield stream.update(zeros[: min(_STEP, self.size - offset)])


Content = bytes | Path | Generated


def size_of(content: Content) -> int:
    if isinstance(content, Path):
        return content.stat().st_size
    return content.size if isinstance(content, Generated) else len(content)


def blocks_of(content: Content) -> Iterator[bytes]:
    """The content in pieces of at most 1 MiB."""
    if isinstance(content, Generated):
        yield from content.blocks()
    elif isinstance(content, Path):
        with content.open("rb") as file:
            while block := file.read(_STEP):
                yield block
    else:
        yield from (content[start : start + _STEP] for start in range(0, len(content), _STEP))


def digest_of(content: Content) -> str:
    """`sha256:<hex>`."""
    summed = hashlib.sha256()
    for block in blocks_of(content):
        summed.update(block)
    return f"sha256:{summed.hexdigest()}"


def files_of(folder: Path) -> dict[str, Content]:
    """Every regular file below `folder`, by its path from there; dotfiles are not packed, and not here."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
