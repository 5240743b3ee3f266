"""What a registry's Retry-After asks for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from modelvold.errors import Unreachable
from modelvold.registry import refusal

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        ("3600", 3600),
        ("Thu, 26 Nov 2026 12:00:09 GMT", 9),
        ("Thu, 26 Nov 2026 11:59:00 GMT", 0),
        ("Thu, 26 Nov 2026 12:00:09", 9),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("9" * 50, 0),
        ("Thu, 99 Nov 2026 12:00:09 GMT", 0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    """A number of seconds or a date; what cannot be understood asks for nothing."""
    assert refusal.wait_in(header, NOW) == seconds


def test_an_hour_is_not_waited_for() -> None:
    """What it says is told, what is done about it is bounded."""
    failure = refusal.of_status(429, "model", "host", wait=3600)
    assert isinstance(failure, Unreachable)
    assert "asks to wait 3600 s" in failure.message
    assert failure.wait == refusal.LONGEST_WAIT
