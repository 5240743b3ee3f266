"""How often in a row, and whether it is news: time is given, none passes."""

from __future__ import annotations

import pytest
from modelvold.errors import Exhausted, Unreachable
from modelvold.fetch.trouble import PROGRESS, Troubles

KEY = (1, 7)


def _down(segment: int = 0) -> Unreachable:
    start = segment << 20
    return Unreachable(f"models/tiny@sha256:ab12 bytes {start}-{start + 100}: host answered 503", "ask later")


def test_pauses_grow_until_bytes_come() -> None:
    """A few bytes now and then are no progress, as they are none to the gate."""
    troubles = Troubles()
    now, present, pauses = 0.0, 0, []
    for grown in (0, 100, PROGRESS - 1, PROGRESS, 0):
        present += grown
        pauses.append(troubles.fail(KEY, present, _down(), now))
        now += 100
    assert pauses == [0.2, 0.4, 0.8, 0.2, 0.4]


def test_failures_at_one_time_are_one() -> None:
    """Seven transfers of a prefetch meet the same dead registry."""
    troubles = Troubles()
    assert [troubles.fail(1, 0, _down(n), n / 100) for n in range(7)] == [0.2] * 7
    assert troubles.fail(1, 0, _down(), 1.0) == 0.4


def test_each_segment_that_somebody_waits_for_is_counted_by_itself() -> None:
    """And from the beginning once nobody waits any more, or it came."""
    troubles = Troubles()
    assert [troubles.fail(KEY, 0, _down(), now) for now in (0.0, 10.0, 20.0)] == [0.2, 0.4, 0.8]
    assert troubles.fail((1, 8), 0, _down(), 30.0) == 0.2
    troubles.release(KEY)
    assert [troubles.fail(KEY, 0, _down(), now) for now in (40.0, 50.0)] == [0.2, 0.4]
    troubles.work(1, KEY)
    assert troubles.fail(KEY, 0, _down(), 60.0) == 0.2
    assert troubles.fail((1, 8), 0, _down(), 70.0) == 0.4


def test_a_cause_is_told_once_for_all_segments() -> None:
    """Whatever range it was; another content has a line of its own."""
    troubles = Troubles()
    assert [troubles.is_news(1, _down(n), n) for n in range(300)] == [True] + [False] * 299
    assert troubles.is_news(2, _down(), 300)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("host answered 503", "host answered 502"),
        ("host answered 503", "mirror answered 503"),
        ("host: silent for 20 s", "host: too slow, 7 bytes in 20 s"),
    ],
)
def test_another_cause_is_news_and_the_first_is_not_again(first: str, second: str) -> None:
    """Two that take turns are two lines."""
    troubles = Troubles()
    assert [troubles.is_news(1, Unreachable(said), now) for now, said in enumerate([first, second] * 10)] == [
        True,
        True,
        *([False] * 18),
    ]


def test_it_is_news_again_after_it_had_worked() -> None:
    """That it works is told once, too; of one that works every other time there is a line a minute."""
    troubles = Troubles()
    assert not troubles.work(1, KEY)
    assert troubles.is_news(1, _down(), 0.0)
    assert [troubles.work(1, KEY) for _ in range(3)] == [True, False, False]
    assert troubles.is_news(1, _down(), 100.0)
    assert not troubles.is_news(1, _down(), 200.0)
    assert troubles.work(1, KEY)
    told = [(troubles.work(1, KEY), troubles.is_news(1, _down(), now)) for now in range(300, 420)]
    assert sum(is_news for _, is_news in told) == 2
    assert sum(is_well for is_well, _ in told) == 2


def test_forgotten_with_its_content() -> None:
    troubles = Troubles()
    for content in (1, 2):
        troubles.is_news(content, _down(), 0.0)
        troubles.fail((content, 0), 0, _down(), 0.0)
        troubles.fail(content, 0, _down(), 0.0)
    troubles.forget(1)
    assert troubles.fail((1, 0), 0, _down(), 10.0) == 0.2
    assert troubles.fail(1, 0, _down(), 10.0) == 0.2
    assert troubles.fail((2, 0), 0, _down(), 10.0) == 0.4
    assert troubles.is_news(1, _down(), 10.0)
    assert not troubles.is_news(2, _down(), 10.0)


def test_no_more_causes_are_remembered_than_a_few() -> None:
    troubles = Troubles()
    for number in range(1000):
        troubles.is_news(1, Unreachable(f"cause x{number}x"), 0.0)
    assert len(troubles._told[1].causes) <= 16


def test_amounts_make_no_other_cause() -> None:
    """A full disk is one cause, however much was asked for and is left."""
    said = [f"store /s: no room for {n}.0 MiB more, {n}.3 KiB are left (a quota of 2.00 GiB)" for n in (16, 8)]
    assert len({Exhausted(text).cause for text in said}) == 1
    assert Exhausted("store /s: no room").cause != Exhausted("store /t: no room").cause
