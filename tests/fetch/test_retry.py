"""Whether to ask again: a registry's passing trouble only, and ever more slowly."""

from __future__ import annotations

import pytest
from modelvold import errors
from modelvold.fetch.retry import pause_after


def test_passing_trouble_is_tried_again_ever_more_slowly() -> None:
    """Pauses double from the first and never grow beyond a few seconds."""
    pauses = [pause_after(errors.Unreachable("gone"), attempt) for attempt in range(1, 50)]
    assert pauses[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(pauses[5:]) == {5.0}


@pytest.mark.parametrize(
    "failure", [errors.NotFound, errors.Unauthorized, errors.Forbidden, errors.Mismatch, errors.Failing, errors.Refused]
)
def test_what_will_not_mend_itself_is_not_asked_again(failure: type[errors.Failure]) -> None:
    """A permanent failure is told at once."""
    assert pause_after(failure("no"), 1) is None
