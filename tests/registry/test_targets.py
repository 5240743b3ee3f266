"""For how long the target of a redirect may be used again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from modelvold.registry import targets

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
PLAIN = "https://storage.example/blob"


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", 60),
        ("X-Amz-Date=20261126T120000Z&X-Amz-Expires=100&X-Amz-Signature=x", 90),
        ("X-Amz-Date=20261126T115900Z&X-Amz-Expires=100", 36),
        ("X-Amz-Date=20261126T120000Z&X-Amz-Expires=1200", 300),
        ("X-Goog-Date=20261126T120000Z&X-Goog-Expires=60", 54),
        ("x-oss-date=20261126T120000Z&x-oss-expires=60", 54),
        (f"Expires={EPOCH + 100}&Signature=x&Key-Pair-Id=y", 90),
        (f"Expires={EPOCH + 10}", 8),
        (f"Expires={EPOCH + 1}", 0),
        (f"Expires={EPOCH - 100}", 0),
        ("sv=2020&se=2026-11-26T12%3A01%3A40Z&sig=x", 90),
        ("se=2026-11-26&sig=x", 0),
        ("se=2026-11-26T12%3A01%3A40Z", 60),  # somebody else's `se`
        (f"Expires={EPOCH + 100}&X-Amz-Date=20261126T120000Z&X-Amz-Expires=50", 45),
        ("X-Amz-Expires=100", 60),
        ("X-Amz-Date=20261126T120000Z", 60),
        ("X-Amz-Date=yesterday&X-Amz-Expires=100", 60),
        ("X-Amz-Date=20261126T120000Z&X-Amz-Expires=-1", 60),
        ("X-Amz-Date=20261126T120000Z&X-Amz-Expires=" + "9" * 9, 300),
        ("Expires=soon", 60),
        ("Expires=" + "9" * 40, 60),
        ("se=soon&sig=x", 60),
        ("verify=1-x", 60),
    ],
)
def test_what_the_address_says(query: str, seconds: float) -> None:
    assert targets.life(f"{PLAIN}?{query}", "", "", NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("", 60),
        ("private", 60),
        ("no-store", 0),
        ("private, No-Store", 0),
        ("no-cache", 0),
        ("max-age=0", 0),
        ("max-age=20", 20),
        ('max-age="20"', 20),
        ("public, max-age=100", 100),
        ("max-age=31536000", 300),
        ("max-age=" + "9" * 40, 300),
        ("max-age=soon", 60),
    ],
)
def test_what_the_answer_says(cache_control: str, seconds: float) -> None:
    assert targets.life(PLAIN, cache_control, "", NOW) == seconds
    assert targets.life(f"{PLAIN}?Expires={EPOCH + 40}", cache_control, "", NOW) == min(seconds, 36)


def test_signatures_end_by_the_clock_of_whoever_gives_them() -> None:
    wrong = NOW + timedelta(hours=1)
    for date in ("Thu, 26 Nov 2026 12:00:00 GMT", "Thu, 26 Nov 2026 12:00:00"):
        assert targets.life(f"{PLAIN}?Expires={EPOCH + 100}", "", date, wrong) == 90
    for date in ("", "soon"):
        assert targets.life(f"{PLAIN}?Expires={EPOCH + 100}", "", date, wrong) == 0


def test_long_addresses_are_not_kept() -> None:
    assert targets.life(f"{PLAIN}?x={'y' * 9000}", "", "", NOW) == 0
