"""Amounts, of bytes and of time: as settings say them, and bytes as people read them. Pure.

What is read takes both families of units of bytes, powers of 1024 (GiB) and of 1000 (GB). It insists on a unit: whoever leaves it
out may have meant anything. What is shown has powers of 1024 alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Self

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BYTES = {"B": 1, "kB": 1000} | {
    f"{letter}{ending}": base**power
    for ending, base in (("iB", 1024), ("B", 1000))
    for power, letter in enumerate("KMGT", 1)
}
#: So many digits are more than any disk has, and keep a mistyped number from becoming a slow one.
_FORM = re.compile(r"(?P<number>[0-9]{1,18}(\.[0-9]{1,18})?) ?(?P<unit>%|[A-Za-z]*)")
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,9})?) ?(?P<unit>[smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: A hundred years: what waits for so many seconds still can, and nobody means more.
_LONGEST = 36500 * 86400.0


@dataclass(frozen=True, slots=True)
class Amount:
    """So many `bytes`, or, where `share` is not 0, so much of a whole, from 0 to 1. Without either it is none."""

    bytes: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `200 GiB`, `1.5TB`, `80%`; nothing is none. Raises ValueError, whose text says what is wrong with it."""
        if not text:
            return cls()
        form = _FORM.fullmatch(text)
        if form is None:
            raise ValueError(f"{text[:200]!r} is not a number and a unit")
        number, unit = Decimal(form["number"]), form["unit"]
        if unit == "%":
            if number > 100:
                raise ValueError(f"{text!r} is more than all of it")
            return cls(share=float(number / 100))
        if unit not in _BYTES:
            what = f"the unit {unit!r} is not known" if unit else f"{text!r} has no unit"
            raise ValueError(f"{what}: it is one of {', '.join(_BYTES)}, %")
        return cls(bytes=int(number * _BYTES[unit]))

    def of(self, total: int) -> int:
        """Bytes, where the whole has `total`. A share of it, however small, is not none."""
        return min(math.ceil(total * self.share), total) if self.share else self.bytes


def duration(text: str) -> float | None:
    """Seconds: reads `7d`, `12h`, `30m`, `1.5s`; nothing is None. Raises ValueError, whose text says what is wrong with it."""
    if not text:
        return None
    form = _DURATION.fullmatch(text)
    if form is None:
        raise ValueError(f"{text[:200]!r} is not a number and one of {', '.join(_SECONDS)}")
    seconds = float(form["number"]) * _SECONDS[form["unit"]]
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is more than 36500d")
    return seconds


def size(count: float) -> str:
    """Bytes with three significant digits, powers of 1024."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    digits = 0 if unit == 0 or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"
