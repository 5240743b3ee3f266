from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.engine.weight_map import LONGEST, MOST_FILES, files_of

_NAMES = st.text(st.characters(exclude_characters='"\\/\0', exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda name: name not in {".", ".."}
)


def _document(weight_map: Any, **more: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, **more, "weight_map": weight_map}, ensure_ascii=False).encode()


@given(st.dictionaries(_NAMES, _NAMES, min_size=1))
def test_the_files_of_a_map(pairs: dict[str, str]) -> None:
    assert files_of(_document(pairs)) == {name.encode() for name in pairs.values()}


def test_one_as_it_is_published() -> None:
    pairs = {f"model.layers.{n}.mlp.down_proj.weight": f"model-{n % 3 + 1:05}-of-00003.safetensors" for n in range(300)}
    for indent in (None, 2, "\t"):
        document = json.dumps({"metadata": {}, "weight_map": pairs, "more": [1, {"weight_map": {}}]}, indent=indent)
        assert files_of(document.encode()) == {b"model-%05d-of-00003.safetensors" % n for n in (1, 2, 3)}


def test_files_in_folders_below() -> None:
    assert files_of(_document({"a": "sub/x.bin", "b": "x.bin"})) == {b"sub/x.bin", b"x.bin"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"weight_map": 1}',
        b'{"weight_map": null}',
        b'{"weight_map": "a"}',
        b'{"weight_map": ["a", "b"]}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "b", "c": {"d": "e"}}}',
        b'{"weight_map": {"a": "b"',
        b'{"weight_map": {"a": "b",}}',
        b'{"weight_map": {"a": "b\\u0041"}}',
        b"[" * 1_000_000,
        b'{"x": ' + b"[" * 1_000_000,
        b'{"weight_map": ' + b'{"a": ' * 1_000_000,
        *(_document({"a": "x", "b": name}) for name in ("", "/x", "../x", "a/../x", "./x", "a//b", "a/", ".", "a\0")),
        _document({str(n): str(n) for n in range(MOST_FILES + 1)}),
        _document({"a": "b"}) + b" " * LONGEST,
    ],
    ids=range(29),
)
def test_what_is_not_understood(document: bytes) -> None:
    assert files_of(document) == frozenset()


@given(st.binary(max_size=200))
def test_anything(document: bytes) -> None:
    files_of(document)
    files_of(b'{"weight_map": {"a": "b", ' + document)
