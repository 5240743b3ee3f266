"""Heads of files of weights, those of real files and those that somebody has made to do harm."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from modelvold.engine import gguf, safetensors
from safetensors.numpy import save_file

from tests.lab.debian import Unavailable, real_model

GIB = 1 << 30


def _start(length: int) -> bytes:
    return struct.pack("<Q", length)


def test_the_header_of_a_file_that_its_library_wrote(tmp_path: Path) -> None:
    """What lies behind it is the first tensor's first byte."""
    path = tmp_path / "x.safetensors"
    save_file({f"t{n:03}": np.full(7, n, np.float32) for n in range(100)}, path)
    whole = path.read_bytes()
    end = safetensors.header_end(whole[: safetensors.LENGTH], len(whole))
    assert end == len(whole) - 100 * 7 * 4


def test_the_header_of_a_real_model() -> None:
    try:
        path = real_model() / "model.safetensors"
    except Unavailable as reason:
        pytest.skip(str(reason))
    with path.open("rb") as file:
        assert safetensors.header_end(file.read(64), path.stat().st_size) == 11_416


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (b"", GIB),
        (_start(100)[:7], GIB),
        (_start(0), GIB),
        (_start(1), GIB),
        (_start(100_000_001), GIB),
        (_start(2**64 - 1), GIB),
        (_start(2**63), GIB),
        (_start(93), 100),
        (_start(2), 9),
        (b"PK\x03\x04\x00\x00\x08\x08", GIB),
        (b"GGUF\x03\0\0\0", GIB),
        (b"version ", 134),
    ],
)
def test_what_is_no_header(start: bytes, size: int) -> None:
    assert safetensors.header_end(start, size) is None


def test_the_bounds_of_a_header() -> None:
    assert safetensors.header_end(_start(92) + b"{", 100) == 100
    assert safetensors.header_end(_start(2), 10) == 10
    assert safetensors.header_end(_start(100_000_000), GIB) == 100_000_008


def test_later_parts_of_a_gguf_have_no_vocabulary() -> None:
    names = [
        b"a.gguf",
        b"a-00001-of-00009.gguf",
        b"b/a-00002-of-00009.gguf",
        b"a-00010-of-00012.GGUF",
        b"a-2-of-9.gguf",
    ]
    assert [gguf.head_of(name) >> 20 for name in names] == [16, 16, 2, 2, 16]
