"""A report as a person reads it: the volumes, the node, and last, where the eye ends up, what has to be done. Pure.

What is as it should be takes no line.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelvold.cli.show import duration, one_line, rate, share, shortened, wrapped
from modelvold.cli.urgent import urgent
from modelvold.lending.report import NodeReport, Report, VolumeReport
from modelvold.store.amount import size

_COLUMNS = (("STATE", 12), ("SIZE", 10), ("PRESENT", 8), ("VERIFIED", 9), ("RATE", 13), ("LEFT", 13), ("WAITING", 7))
_INDENT = "  "
_MOST_NAMED = 3


def overview(report: Report, width: int | None, *, urgent_first: bool = False) -> str:
    """The whole report; no line longer than `width` columns, which is at least 80, or whatever it takes for None.

    `urgent_first` is for a screen that is cut off at its bottom.
    """
    parts = [_volumes(report.volumes, width), _node(report.node, width)]
    if to_do := list(_urgent(report, width)):
        parts.insert(0 if urgent_first else len(parts), iter(to_do))
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts)


def _volumes(volumes: tuple[VolumeReport, ...], width: int | None) -> Iterator[str]:
    if not volumes:
        yield "no volumes"
    else:
        yield "VOLUME"
        yield _row(tuple(name for name, _ in _COLUMNS))
    for volume in volumes:
        yield shortened(one_line(volume.reference), width)
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


def _more(volume: VolumeReport, width: int | None) -> Iterator[str]:
    if volume.poisoned:
        yield from _noted("POISONED", "programs have wrong bytes of it in memory: see ATTENTION", width)
    if volume.stranded:
        yield from _noted("STRANDED", "programs have a dead mount of it: see ATTENTION", width)
    waiting = [f"{read.command} ({read.pid}) {duration(read.seconds)}" for read in volume.waiting]
    yield from _noted("waiting", _named(waiting), width)
    yield from _noted("used by", _named(list(volume.consumers)), width)
    if volume.used > 0 and not volume.consumers:
        yield from _noted("last used", f"{duration(volume.used)} ago", width)
    yield from _noted("pinned", "neither evicted nor forgotten" if volume.pinned else "", width)
    yield from _noted("last error", volume.last_error, width)


def _node(node: NodeReport, width: int | None) -> Iterator[str]:
    backend = f"{node.backend} ({node.backend_reason})" if node.backend_reason else node.backend
    itself = f"modelvold {node.version}, up {duration(node.uptime)}, {size(node.memory)} of memory"
    yield from _noted("node", itself, width)
    yield from _noted("backend", backend, width)
    yield from _noted("store", _store(node), width)
    yield from _noted("room", _room(node), width)
    yield from _noted("snapshots", _snapshots(node), width)
    yield from _noted("scrub", _scrub(node), width)
    reads = f"{node.events} events answered, {node.reads_denied} reads denied"
    yield from _noted("reads", f"{reads}, prefetch {'on' if node.prefetch else 'off'}", width)
    yield from _noted("façade", node.facade or "off", width)
    yield from _noted("last error", node.last_error, width)


def _store(node: NodeReport) -> str:
    state = "ok" if node.store_state == "ok" else "FAILING"
    durable = ", NOT DURABLE" if node.not_durable else ""
    used = f"{size(node.store_used)} used, {size(node.disk_free)} of {size(node.disk_total)} free"
    return f"{node.store}: {state}{durable}; {used}"


def _room(node: NodeReport) -> str:
    parts = [f"{size(max(node.room, 0))} before anything is evicted"]
    if node.room < 0:
        parts.append(f"{size(-node.room)} over the bounds")
    if node.quota:
        parts.append(f"quota {size(node.quota)}")
    if node.reserve:
        parts.append(f"{size(node.reserve)} left to others")
    if node.evicted:
        parts.append(f"{size(node.evicted)} evicted since the start")
    return ", ".join(parts)


def _snapshots(node: NodeReport) -> str:
    if not node.snapshots_in_use:
        return str(node.snapshots or "")
    needed = "which go on without modelvold, but no new ones start"
    return f"{node.snapshots}, {node.snapshots_in_use} of them of containers and image volumes, {needed}"


def _scrub(node: NodeReport) -> str:
    return f"all that is here was read again in the last {duration(node.scrubbed)}" if node.scrubbed >= 0 else ""


def _urgent(report: Report, width: int | None) -> Iterator[str]:
    for number, (what, mend) in enumerate(urgent(report)):
        if number == 0:
            yield "ATTENTION"
        yield from wrapped(what, width, first=_INDENT, rest=2 * _INDENT)
        yield from wrapped(mend, width, first=f"{2 * _INDENT}mend: ", rest=2 * _INDENT)


def _row(cells: tuple[str, ...]) -> str:
    return _INDENT + "".join(cell.ljust(wide) for cell, (_, wide) in zip(cells, _COLUMNS, strict=True))


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def _noted(word: str, text: str, width: int | None) -> list[str]:
    return wrapped(text, width, first=f"{_INDENT}{word + ':':<12}", rest=" " * 14) if text else []
