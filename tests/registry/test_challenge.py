"""WWW-Authenticate headers as registries write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.registry.challenge import Challenge, choose, parse, pull_scope


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'],
            [Challenge("bearer", "https://auth.docker.io/token", "registry.docker.io", "repository:a/b:pull")],
        ),
        (['Basic realm="Registry Realm"'], [Challenge("basic", "Registry Realm")]),
        (["BASIC"], [Challenge("basic")]),
        (["Basic realm=plain"], [Challenge("basic", "plain")]),
        (['Basic realm="a \\"quoted\\" one, with = and ,"'], [Challenge("basic", 'a "quoted" one, with = and ,')]),
        (
            ['Bearer realm = "https://a/t" , error="invalid_token"', "Basic"],
            [Challenge("bearer", "https://a/t"), Challenge("basic")],
        ),
        (
            ['Negotiate, Basic realm="x", Bearer realm="https://a/t", service=s'],
            [Challenge("negotiate"), Challenge("basic", "x"), Challenge("bearer", "https://a/t", "s")],
        ),
        ([""], []),
        ([",,,"], []),
        (['realm="x"'], []),
        (['Bearer realm="unclosed'], [Challenge("bearer")]),
    ],
)
def test_parse(headers: list[str], expected: list[Challenge]) -> None:
    assert list(parse(headers)) == expected


def test_choose() -> None:
    basic, bearer, bare = Challenge("basic", "x"), Challenge("bearer", "https://a/t"), Challenge("bearer")
    assert choose([basic, bearer]) == bearer
    assert choose([basic, bare]) == basic
    assert choose([bare, Challenge("digest")]) is None


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", "repository:a/b:pull"),
        ("repository:a/b:pull", "repository:a/b:pull"),
        ("repository:a/b:pull,push", "repository:a/b:pull"),
        ("repository:a/b:*", "repository:a/b:pull"),
        ("repository:proxy/a/b:pull", "repository:proxy/a/b:pull"),
        ("aws", "aws"),
    ],
)
def test_scope(scope: str, expected: str) -> None:
    assert pull_scope(Challenge("bearer", "https://a/t", "", scope), "a/b") == expected


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from('Basic realm="\\,= x\t;'), max_size=60), max_size=3))
def test_never_raises_and_never_invents(headers: list[str]) -> None:
    for challenge in parse(headers):
        assert challenge.scheme
        assert challenge.scheme in ",".join(headers).lower()


@settings(deadline=None)
@given(st.text(alphabet="abcXYZ09 ,=/:", max_size=30), st.text(alphabet='ab"\\c', max_size=10))
def test_what_is_quoted_comes_back(realm: str, service: str) -> None:
    quoted = service.replace("\\", "\\\\").replace('"', '\\"')
    assert parse([f'Bearer realm="{realm}", service="{quoted}"']) == (Challenge("bearer", realm, service),)
