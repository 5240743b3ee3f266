"""What fuzzing found stays found; and a short fuzz of every run, from the same inputs (`tests.fuzz.tar_walker`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.layer.toc import Toc

from tests.fuzz.tar_walker import check, repaired

CORPUS = sorted((Path(__file__).parent.parent / "fuzz/corpus/tar").iterdir())
SEEDS = [path.read_bytes() for path in CORPUS]

#: Overwrite, insert or delete: where, what and how much.
changes = st.tuples(
    st.integers(0, 1 << 14),
    st.sampled_from(["over", "in", "out", "block"]),
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([b"\x80\xff\xff\xff", b"\xff" * 12, b"77777777777\0", bytes(512), b"../", b"/", b"xgLK1256S7"]),
    ),
)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    check(path.read_bytes())
    check(repaired(path.read_bytes()))


def test_the_corpus_has_tars_and_liars_and_is_small() -> None:
    outcomes = [check(seed) for seed in SEEDS]
    assert sum(isinstance(found, Toc) and bool(found.entries) for found in outcomes) > 10
    assert sum(isinstance(found, str) for found in outcomes) > 10
    assert sum(map(len, SEEDS)) < 300 << 10


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(changes, min_size=1, max_size=6), st.booleans())
def test_changed_tars_are_told_or_read_alike(seed: bytes, made: list[tuple[int, str, bytes]], mend: bool) -> None:
    changed = bytearray(seed)
    for where, what, with_ in made:
        at = where % (len(changed) + 1)
        if what == "block":
            # Headers lie at whole blocks, and what decides lies in their fields.
            at = at // 512 * 512 + (100, 108, 124, 136, 148, 156, 157, 257, 345)[where % 9]
        end = {"over": at + len(with_), "in": at, "out": at + 64 * len(with_), "block": at + len(with_)}[what]
        changed[at:end] = b"" if what == "out" else with_
    check(repaired(bytes(changed)) if mend else bytes(changed))
