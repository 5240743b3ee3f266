"""Values as a person reads them. Pure.

What is shown comes from registries, file names and other programs' names: whatever is not printable is replaced,
so that it cannot move the cursor or break a line.
"""

from __future__ import annotations

import textwrap

from modelvold.lending.report import Checked, Collected, Progress
from modelvold.store.amount import size

_SHORT_DIGEST = len("sha256:") + 12


def one_line(text: str) -> str:
    """`text` on one line, with nothing a terminal acts on."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def said(message: str, remedy: str = "") -> str:
    """A failure: one line, and its remedy a second."""
    first = f"modelvold: {one_line(message)}"
    return f"{first}\n{one_line(remedy)}" if remedy else first


def rate(bytes_a_second: float) -> str:
    return f"{size(bytes_a_second)}/s" if bytes_a_second > 0 else "-"


def duration(seconds: float) -> str:
    """The two largest units; `-` where unknown."""
    if seconds < 0:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def share(part: int, whole: int) -> str:
    """Percent, rounded down: 100 % is all of it."""
    return f"{100 * part // whole if whole else 100} %"


def segments(count: int) -> str:
    return f"{count} segment{'' if count == 1 else 's'}"


def step(progress: Progress) -> str:
    """One line about a pull."""
    whole = progress.size
    parts = [f"{share(getattr(progress, name), whole)} {name}" for name in ("present", "durable", "verified")]
    state = "done" if progress.done else rate(progress.rate)
    return f"{one_line(progress.reference)}: {', '.join(parts)} of {size(whole)}, {state}"


def check(checked: Checked) -> str:
    """One line about a check."""
    what = one_line(checked.reference) or "all models"
    state = "done" if checked.done else rate(checked.rate)
    return f"{what}: {share(checked.read, checked.size)} of {size(checked.size)} read, {wrong(checked)}, {state}"


def wrong(checked: Checked) -> str:
    found = f"{segments(checked.wrong)} wrong" if checked.wrong else "nothing wrong"
    return f"{found}, {checked.repaired} repaired" if checked.repaired else found


def collected(one: Collected) -> str:
    """One line about a model that is forgotten; its digest, for a tag may have moved over several."""
    return f"{size(one.bytes):>8}  {one_line(one.reference)} ({one_line(one.manifest[:_SHORT_DIGEST])})"


def wrapped(text: str, width: int | None, *, first: str = "", rest: str = "") -> list[str]:
    """`text` in lines of `width` columns, or in one for None, the `first` and the `rest` of them indented so."""
    text = one_line(text)
    if width is None:
        return [f"{first}{text}"]
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def shortened(text: str, width: int | None) -> str:
    """Without its middle, if it must be: registry and tag are at the ends."""
    if width is None or len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"
