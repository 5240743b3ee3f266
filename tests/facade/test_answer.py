from __future__ import annotations

import json

import pytest
from modelvold import errors
from modelvold.facade.answer import CLASSES, refusal

NOUNS = [noun for noun in vars(errors).values() if isinstance(noun, type) and issubclass(noun, errors.Failure)]


@pytest.mark.parametrize("noun", NOUNS)
def test_the_table_is_total(noun: type[errors.Failure]) -> None:
    answer = refusal(noun("thing: cause", "next step"))
    assert answer.status >= 400
    assert answer.status not in {408, 429}  # containerd repeats them at once
    assert json.loads(answer.body)["errors"][0]["message"] == "thing: cause; next step"
    assert ("WWW-Authenticate" in answer.headers) == (answer.status == 401)
    parents = [known for known in noun.__mro__ if known in CLASSES]
    assert parents[0] is not errors.Failure or noun is errors.Failure


def test_a_reason_cannot_end_the_status_line() -> None:
    phrase = refusal(errors.Unreachable("a\r\nSet-Cookie: b\tfaçade " + "x" * 5000)).phrase
    assert phrase.startswith("Service Unavailable: a??Set-Cookie: b?fa?ade x")
    assert len(phrase) < 700
