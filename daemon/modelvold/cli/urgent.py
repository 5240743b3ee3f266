"""What a person has to do, from a report: each with what mends it, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from modelvold.cli.show import segments
from modelvold.lending.report import NodeReport, Report, VolumeReport


def urgent(report: Report) -> Iterator[tuple[str, str]]:
    """What is wrong, and the next step."""
    for find in (_poisoned, _stranded, _quarantined):
        for volume in report.volumes:
            yield from find(volume)
    yield from _failing(report.node)
    yield from _not_durable(report.node)
    yield from _wrong_segments(report.node)
    for volume in report.volumes:
        yield from _streaming(volume)


def _poisoned(volume: VolumeReport) -> Iterator[tuple[str, str]]:
    """All of them by name: each one that is left out goes on with wrong bytes."""
    if volume.poisoned:
        have = "has" if len(volume.poisoned) == 1 else "have"
        what = f"{volume.reference}: {', '.join(volume.poisoned)} {have} wrong bytes of it in memory"
        yield what, "restart what is named here; what it reads then is right"


def _stranded(volume: VolumeReport) -> Iterator[tuple[str, str]]:
    if volume.stranded:
        have = "has" if len(volume.stranded) == 1 else "have"
        what = f"{volume.reference}: {', '.join(volume.stranded)} {have} a mount of it whose process died"
        yield what, "restart what is named here: it is mounted anew then; until then its reads fail"


def _quarantined(volume: VolumeReport) -> Iterator[tuple[str, str]]:
    if volume.state == "quarantined":
        what = f"{volume.reference}: its bytes are not those of its digest, and are not served"
        yield what, "see its last error, mend it in the registry; `modelvold rm` it here, and pull it again"


def _failing(node: NodeReport) -> Iterator[tuple[str, str]]:
    if node.store_state != "ok":
        why = node.store_state.removeprefix("failing: ")
        yield f"{why}: only what was recorded is served", "see `dmesg`, mend the disk, then restart modelvold"


def _not_durable(node: NodeReport) -> Iterator[tuple[str, str]]:
    if node.not_durable:
        yield f"the store is not durable: {node.not_durable}", "`modelvold doctor` says what makes it so"


def _wrong_segments(node: NodeReport) -> Iterator[tuple[str, str]]:
    if node.wrong_segments:
        found = f"{segments(node.wrong_segments)} did not hold the bytes recorded of them, since the start"
        mend = "see `dmesg`, the disk may be failing; `modelvold verify --repair` reads all of it again"
        yield f"{found}: they are fetched again when read", mend


def _streaming(volume: VolumeReport) -> Iterator[tuple[str, str]]:
    if volume.state == "streaming":
        what = f"{volume.reference}: does not fit, so what was read goes, and is fetched again when it is read again"
        yield what, "make room: `modelvold gc`, a larger [store] quota, a larger disk"
