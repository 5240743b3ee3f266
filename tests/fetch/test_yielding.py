"""Whether prefetch holds still for somebody who waits."""

from __future__ import annotations

from modelvold.fetch.yielding import holds


def test_it_holds_for_one_that_is_coming() -> None:
    """From its request on, whatever else waits in vain."""
    assert holds([0.0], 0.1, each_counts=False)
    assert holds([-10.0, 0.0], 0.1, each_counts=False)


def test_it_does_not_hold_for_one_for_which_nothing_comes() -> None:
    """A registry that is silent must not silence everything else."""
    assert not holds([0.0], 0.6, each_counts=False)
    assert not holds([], 0.0, each_counts=False)


def test_it_is_of_no_use_where_a_connection_has_what_it_has() -> None:
    """The host bounds each connection by itself."""
    assert not holds([0.0], 0.1, each_counts=True)
