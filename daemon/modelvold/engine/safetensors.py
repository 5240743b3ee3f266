"""The head of a safetensors file: eight bytes, little-endian, that count the bytes of JSON behind them (safetensors/src/tensor.rs)."""

from __future__ import annotations

#: Of a file's start, what tells how long the header is.
LENGTH = 8
#: Bytes from a file's start that hold the header of all but very few: 15,000 tensors, at 140 bytes each.
HEAD = 2 << 20
#: No reader takes a longer one (MAX_HEADER_SIZE). And `{}` is the shortest.
_LONGEST, _SHORTEST = 100_000_000, 2


def header_end(start: bytes, size: int) -> int | None:
    """Where the header of a file of `size` bytes ends that begins with `start`; None where it is no safetensors file."""
    if len(start) < LENGTH:
        return None
    length = int.from_bytes(start[:LENGTH], "little")
    return LENGTH + length if _SHORTEST <= length <= min(_LONGEST, size - LENGTH) else None
