"""Fuzzing of the tar walker and of a toc's document.

    pip install atheris==3.0.0        # CPython 3.11 to 3.13, x86-64 Linux
    python -m tests.fuzz.tar_walker -max_total_time=600 /tmp/found tests/fuzz/corpus/tar

New inputs go into the first folder; a finding lies where it was started. What is worth keeping goes into the corpus, which
`tests/layer/test_fuzz_corpus.py` replays: what GNU tar and tarfile write, lies, and (`found-…`) inputs that take a way
through the code which none of the others takes.
"""

from __future__ import annotations

import random
import sys

from modelvold.errors import Failure
from modelvold.layer.cut import cut
from modelvold.layer.extent import BLOCK, padded
from modelvold.layer.toc import Kind, Toc, decode, encode

from tests.layer.tars import in_pieces, stepwise, summed, whole

_BYTES_FOLLOW = frozenset(b"\x0007xgLK")


def check(content: bytes) -> Toc | str:
    """What the tar holds, or what is wrong with it. AssertionError, or anything but a Failure, is a finding."""
    found = _outcome(content)
    if isinstance(found, Toc):
        _check_toc(found)
    _check_document(content)
    return found


def repaired(content: bytes) -> bytes:
    """`content` with right checksums in the headers that a walk comes by: few mutations would get past them."""
    archive, at = bytearray(content), 0
    while at + BLOCK <= len(archive):
        block = bytes(archive[at : at + BLOCK])
        if any(block):
            archive[at : at + BLOCK] = summed(block)
        follows = block[156] in _BYTES_FOLLOW and set(block[124:135]) <= set(b"01234567")
        at += BLOCK + padded(int(block[124:135], 8) if follows else 0)
    return bytes(archive)


def _outcome(content: bytes) -> Toc | str:
    """The one outcome of all ways to feed it."""
    choose = random.Random(len(content))
    sizes = [choose.randrange(1, 3 * BLOCK) for _ in range(7)]
    outcomes: list[Toc | str] = []
    for walk in (whole, stepwise, lambda archive: in_pieces(archive, sizes)):
        try:
            outcomes.append(walk(content))
        except Failure as failure:
            outcomes.append(str(failure))
    assert outcomes[0] == outcomes[1] == outcomes[2], outcomes
    return outcomes[0]


def _check_toc(toc: Toc) -> None:
    """What everyone who is given a toc relies on."""
    assert decode(encode(toc)) == toc
    files = set()
    for entry in toc.entries:
        names = entry.path.split("/")
        assert (entry.path == "" and entry.kind is Kind.DIRECTORY) or not {"", ".", ".."} & set(names)
        assert entry.kind is not Kind.HARDLINK or entry.link in files
        if entry.kind is Kind.FILE:
            files.add(entry.path)
    segments = cut(toc)
    assert sum(segment.length for segment in segments) == toc.length


def _check_document(content: bytes) -> None:
    try:
        toc = decode(content)
    except Failure:
        return
    assert decode(encode(toc)) == toc


def main() -> None:
    import atheris

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        changed = bytes(atheris.Mutate(content, most))
        return changed if seed % 4 == 0 else repaired(changed)

    atheris.instrument_all()
    atheris.Setup(sys.argv, check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
