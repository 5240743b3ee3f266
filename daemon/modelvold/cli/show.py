"""Values as a person reads them. Pure.

What is shown comes from registries, file names and other programs' names: whatever is not printable is replaced,
so that it cannot move the cursor or break a line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from modelvold.lending.report import NodeReport, Progress, Report, VolumeReport

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COLUMNS = (("STATE", 12), ("SIZE", 10), ("PRESENT", 8), ("VERIFIED", 9), ("RATE", 13), ("LEFT", 13), ("WAITING", 7))
_INDENT = "  "
_MOST_NAMED = 3


def one_line(text: str) -> str:
    """`text` on one line, with nothing a terminal acts on."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def size(count: float) -> str:
    """Bytes with three significant digits, powers of 1024."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    digits = 0 if unit == 0 or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {_UNITS[unit]}"


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


def step(progress: Progress) -> str:
    """One line about a pull."""
    whole = progress.size
    parts = [f"{share(getattr(progress, name), whole)} {name}" for name in ("present", "durable", "verified")]
    state = "done" if progress.done else rate(progress.rate)
    return f"{one_line(progress.reference)}: {', '.join(parts)} of {size(whole)}, {state}"


def status(report: Report, width: int | None) -> str:
    """The whole report; no line longer than `width` columns, which is at least 80, or whatever it takes for None."""
    lines = [*_volumes(report.volumes, width), *_node(report.node, width)]
    return "\n".join(line.rstrip() for line in lines)


def _volumes(volumes: tuple[VolumeReport, ...], width: int | None) -> Iterator[str]:
    if not volumes:
        yield "no volumes"
    else:
        yield "VOLUME"
        yield _row(tuple(name for name, _ in _COLUMNS))
    for volume in volumes:
        yield _shortened(one_line(volume.reference), width)
        yield _row(
            (
                volume.state,
                size(volume.size),
                share(volume.present, volume.size),
                share(volume.verified, volume.size),
                rate(volume.rate),
                duration(volume.eta),
                str(len(volume.waiting)),
            ),
        )
        yield from _more(volume, width)
    yield ""


def _more(volume: VolumeReport, width: int | None) -> Iterator[str]:
    waiting = [f"{read.command} ({read.pid}) {duration(read.seconds)}" for read in volume.waiting]
    yield from _noted("waiting", _named(waiting), width)
    yield from _noted("used by", _named(list(volume.consumers)), width)
    yield from _noted("last error", volume.last_error, width)


def _node(node: NodeReport, width: int | None) -> Iterator[str]:
    backend = f"{node.backend} ({node.backend_reason})" if node.backend_reason else node.backend
    itself = f"modelvold {node.version}, up {duration(node.uptime)}, {size(node.memory)} of memory"
    yield from _noted("node", itself, width)
    yield from _noted("backend", backend, width)
    used = f"{size(node.store_used)} used, {size(node.disk_free)} of {size(node.disk_total)} free"
    yield from _noted("store", f"{node.store}: {node.store_state}; {used}", width)
    reads = f"{node.events} events answered, {node.reads_denied} reads denied"
    yield from _noted("reads", f"{reads}, prefetch {'on' if node.prefetch else 'off'}", width)
    yield from _noted("façade", node.facade or "off", width)
    yield from _noted("last error", node.last_error, width)


def _row(cells: tuple[str, ...]) -> str:
    return _INDENT + "".join(cell.ljust(wide) for cell, (_, wide) in zip(cells, _COLUMNS, strict=True))


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _noted(word: str, text: str, width: int | None) -> list[str]:
    if not text:
        return []
    note = f"{_INDENT}{word + ':':<12}{one_line(text)}"
    return textwrap.wrap(note, width, subsequent_indent=" " * 14) if width else [note]


def _shortened(text: str, width: int | None) -> str:
    """Without its middle, if it must be: registry and tag are at the ends."""
    if width is None or len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[-(width - 1 - left) :]}"
