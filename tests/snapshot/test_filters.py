from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import InvalidInput
from modelvold.snapshot.filters import Selector, matcher, parse
from modelvold.snapshot.record import Info, Kind

REF = "containerd.io/snapshot.ref"
COMMITTED = Info("sha256:abc", "", Kind.COMMITTED, {REF: "sha256:abc", "l": "1"}, 1, 2)
ACTIVE = Info("k8s.io/7/run", "sha256:abc", Kind.ACTIVE, {}, 3, 4)


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("", ()),
        ("name==p", (Selector(("name",), "==", "p"),)),
        ("labels.l", (Selector(("labels", "l")),)),
        ('labels."a.b"==c,kind!=view', (Selector(("labels", "a.b"), "==", "c"), Selector(("kind",), "!=", "view"))),
        ('parent!=""', (Selector(("parent",), "!=", ""),)),
        (' name == x , parent ~= "^y" ', (Selector(("name",), "==", "x"), Selector(("parent",), "~=", "^y"))),
        (r'name=="\x41\101\u00e9\U0001f600\t\"\\"', (Selector(("name",), "==", 'AAé😀\t"\\'),)),
        (r'name=="\xc3\xa9"', (Selector(("name",), "==", "é"),)),
        ("name~=/a\\/b/", (Selector(("name",), "~=", "a/b"),)),
        ("name~=|a\\||", (Selector(("name",), "~=", "a\\|"),)),
        ("name==/run/x", (Selector(("name",), "==", "/run/x"),)),
    ],
)
def test_grammar(text: str, selectors: tuple[Selector, ...]) -> None:
    assert parse(text) == selectors


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("==x", "expected a field"),
        ("name=x", "unknown operator '='"),
        ("name===x", "unknown operator '==='"),
        ("name==", "expected a value"),
        ("name==x,", "expected a field"),
        ("name==x y", "expected a comma"),
        ('name=="x', "has no end"),
        (r'name=="\q"', "unknown escape"),
        (r'name=="\xff"', "not valid"),
        (r'name=="\UFFFFFFFF"', "not valid"),
        ("name~=(", "pattern is not valid"),
        ("labels.==x", "expected a field"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(why)):
        parse(text)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], [COMMITTED, ACTIVE]),
        ([""], [COMMITTED, ACTIVE]),
        ([f'labels."{REF}"==sha256:abc,parent==""'], [COMMITTED]),
        ([f'labels."{REF}"'], [COMMITTED]),
        (["labels.l==1", "kind==active"], [COMMITTED, ACTIVE]),
        (["labels.l!=1"], [ACTIVE]),
        (["labels.l~=^[0-9]$"], [COMMITTED]),
        (["parent"], [COMMITTED, ACTIVE]),
        (["kind==committed,name==other"], []),
        (["size==1"], []),
        (["name~=^k8s"], [ACTIVE]),
    ],
)
def test_meaning(filters: list[str], found: list[Info]) -> None:
    assert [info for info in (COMMITTED, ACTIVE) if matcher(filters)(info)] == found


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SELECTORS = st.builds(
    Selector,
    st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    st.sampled_from(["==", "!="]),
    TEXTS,
)


def written(selector: Selector) -> str:
    """As Go's %q writes it, as far as JSON agrees with it."""
    path = ".".join(json.dumps(field, ensure_ascii=False) for field in selector.path)
    return f"{path}{selector.operator}{json.dumps(selector.value, ensure_ascii=False)}"


@given(st.lists(SELECTORS, min_size=1, max_size=4))
def test_whatever_is_quoted_is_read_back(selectors: list[Selector]) -> None:
    assert parse(",".join(written(selector) for selector in selectors)) == tuple(selectors)


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        selectors = parse(text)
    except InvalidInput:
        return
    assert all(selector.path for selector in selectors)


@given(TEXTS, TEXTS, TEXTS)
def test_equal_and_unequal_are_opposites(label: str, value: str, other: str) -> None:
    info = Info("n", "", Kind.VIEW, {label: value}, 0, 0)
    path = ("labels", label)
    assert Selector(path, "==", other).matches(info) is not Selector(path, "!=", other).matches(info)
    assert Selector(path).matches(info)
