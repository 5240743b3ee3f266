"""Whether to ask again: for every noun of failure, how a demand and a prefetch go on."""

from __future__ import annotations

import inspect

import pytest
from modelvold import errors
from modelvold.errors import Failure
from modelvold.fetch.retry import RULES, is_waited_out, most_hopeful, pause_after

FINAL = [errors.NotFound, errors.Malformed, errors.Mismatch, errors.Failing]
BY_HAND = [errors.Unauthorized, errors.Forbidden, errors.InvalidInput]


def test_every_noun_has_a_rule() -> None:
    """A new one must be thought of."""
    nouns = {noun for _, noun in inspect.getmembers(errors, inspect.isclass) if issubclass(noun, Failure)}
    assert nouns - {Failure} == set(RULES)


def test_passing_trouble_is_tried_again_ever_more_slowly() -> None:
    """Pauses double from the first and never grow beyond a few seconds while somebody waits; a prefetch takes its time."""
    failure = errors.Unreachable("gone")
    pauses = [pause_after(failure, attempt) for attempt in range(1, 50)]
    assert pauses[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(pauses[5:]) == {5.0}
    assert [pause_after(failure, attempt, is_awaited=False) for attempt in (1, 2, 50)] == [0.2, 0.4, 30.0]
    assert is_waited_out(failure)


@pytest.mark.parametrize("is_awaited", [True, False])
def test_a_registry_that_asks_to_be_left_alone_is(is_awaited: bool) -> None:
    """Its wait counts where it is the longer one."""
    failure = errors.Unreachable("429", wait=12)
    assert [pause_after(failure, attempt, is_awaited=is_awaited) for attempt in (1, 5)] == [12, 12]


@pytest.mark.parametrize("noun", BY_HAND)
def test_what_a_person_mends_is_asked_for_seldom_while_somebody_waits(noun: type[Failure]) -> None:
    """Five times in the gate's minute, so that no account is locked; a prefetch ends."""
    pauses = [pause_after(noun("no"), attempt) for attempt in range(1, 8)]
    assert pauses == [1, 2, 4, 8, 15, 15, 15]
    assert not is_waited_out(noun("no"))


def test_room_may_be_made_at_any_moment() -> None:
    """Every second while somebody waits; a prefetch ends."""
    failure = errors.Exhausted("full")
    assert {pause_after(failure, attempt) for attempt in range(1, 50)} == {1.0}
    assert not is_waited_out(failure)


def test_what_is_taken_away_while_it_is_written_is_fetched_when_it_is_gone() -> None:
    """That takes the store a second."""
    failure = errors.Refused("truncated while it was written")
    assert [pause_after(failure, attempt) for attempt in (1, 2, 50)] == [0.2, 0.4, 1.0]
    assert is_waited_out(failure)


@pytest.mark.parametrize("failure", FINAL)
def test_what_will_not_mend_itself_is_not_asked_for_again(failure: type[Failure]) -> None:
    """It is told at once, and a prefetch ends."""
    assert pause_after(failure("no"), 1) is None
    assert not is_waited_out(failure("no"))


def test_of_several_places_the_one_worth_waiting_for_counts() -> None:
    """Else the first, which is the best source."""
    nowhere, other, down = errors.NotFound("1"), errors.Malformed("2"), errors.Unreachable("3")
    assert most_hopeful([nowhere, other, down]) is down
    assert most_hopeful([other, nowhere]) is other
