"""For how long the target of a redirect may be asked again without asking who redirected. Pure.

A registry signs the address of a blob in its storage, for a time that the address itself says. Where it says nothing of
that, a minute: it is shorter than any signature that registries are known to give, and long beside a range. A target that
ends sooner than thought is refused by the storage, and then the registry is asked again; so nothing here must be exact.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, urlsplit

#: Seconds. The longest is how long somebody whose right to a blob is taken away may still be sent its bytes by us.
UNSAID = 60.0
LONGEST = 300.0
#: What is left of a life is not used to its end: the request is on its way for a while, and clocks differ.
_MARGIN_PART, _LEAST_MARGIN, _MOST_MARGIN = 0.1, 2.0, 30.0
_LONGEST_URL = 8 << 10
_NEVER = frozenset({"no-store", "no-cache"})
#: AWS and who speaks as it does, Google, Alibaba: `X-Amz-Date` and `X-Amz-Expires`, `X-Goog-…`, `x-oss-…`.
_DATE = re.compile(r"x-[a-z0-9]+-date")


def life(url: str, cache_control: str, date: str, now: datetime) -> float:
    """Seconds for which a redirect to `url` holds, from an answer with these headers; 0: it is not to be remembered.

    `date` is the answer's own, and counts before `now`, which is ours: signatures end by the registry's clock.
    """
    said = _directives(cache_control)
    if said.keys() & _NEVER or len(url) > _LONGEST_URL:
        return 0.0
    bounds = [LONGEST]
    if (age := said.get("max-age", "")).isdecimal():
        bounds.append(float(age[:9]))
    ends = _ends(url)
    if ends is not None:
        left = (ends - _said(date, now)).total_seconds()
        bounds.append(left - min(max(left * _MARGIN_PART, _LEAST_MARGIN), _MOST_MARGIN))
    elif len(bounds) == 1:
        bounds.append(UNSAID)
    return max(0.0, min(bounds))


def _directives(cache_control: str) -> dict[str, str]:
    parts = (part.partition("=") for part in cache_control.lower().split(","))
    return {name.strip(): text.strip().strip('"') for name, _, text in parts}


def _ends(url: str) -> datetime | None:
    """When the signature in `url` ends; the first moment where it names several."""
    query = {name.lower(): text for name, text in parse_qsl(urlsplit(url).query)}
    named = [*_spans(query), _moment(query.get("expires", ""))]
    if "sig" in query:  # Azure's shared access signature
        named.append(_iso(query.get("se", "")))
    return min((moment for moment in named if moment is not None), default=None)


def _spans(query: dict[str, str]) -> list[datetime | None]:
    """Where the beginning and how many seconds are said."""
    found = []
    for name, text in query.items():
        seconds = query.get(f"{name.removesuffix('date')}expires", "")
        if _DATE.fullmatch(name) and re.fullmatch(r"[0-9]{1,9}", seconds):
            found.append(_after(_basic(text), int(seconds)))
    return found


def _after(began: datetime | None, seconds: int) -> datetime | None:
    try:
        return began + timedelta(seconds=seconds) if began is not None else None
    except OverflowError:  # beyond the calendar
        return None


def _moment(epoch: str) -> datetime | None:
    """Google's and Amazon's older form, CloudFront's, and others': seconds since 1970."""
    return datetime.fromtimestamp(int(epoch), UTC) if re.fullmatch(r"[0-9]{1,11}", epoch) else None


def _basic(text: str) -> datetime | None:
    try:
        return datetime.strptime(f"{text.removesuffix('Z')}+0000", "%Y%m%dT%H%M%S%z")
    except ValueError:
        return None


def _iso(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _said(date: str, now: datetime) -> datetime:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, IndexError, TypeError, OverflowError):
        return now
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
