"""The kernel, and the backend that follows from what the probe has seen it do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from modelvold.doctor.line import Group, Line
from modelvold.errors import Unsupported
from modelvold.mount import findings as found
from modelvold.mount.findings import BACKENDS, Findings

GROUP = Group("kernel and machine")
_AUTO = "auto"


def check(release: str, machine: str, findings: Findings, wanted: str) -> Iterator[Line]:
    """`release` and `machine` as uname(2) has them; `wanted` is the setting `[mount] backend`."""
    yield GROUP.ok("kernel", f"Linux {release}, {machine}")
    # A line is bad where the backend cannot do without it: the one that is set, or the one that asks for least.
    vital = found.DIRECTORY if wanted == _AUTO else wanted
    chosen = backend(findings, wanted)
    worse = frozenset(BACKENDS[BACKENDS.index(chosen) + 1 :] if chosen else ())
    for line in findings.lines:
        if line.is_good:
            yield GROUP.ok(line.what)
        elif line.needed_by and line.needed_by <= worse - {vital}:
            yield GROUP.ok(line.what, f"no: {line.seen}; {chosen} works, and needs none of it")
        else:
            say = GROUP.bad if vital in line.needed_by else GROUP.warn
            yield say(line.what, line.seen, f"it takes {line.mend}")
    yield _backend(findings, wanted)


def backend(findings: Findings, wanted: str) -> str:
    """The backend for the setting; empty where there is none."""
    try:
        return findings.choose(wanted)[0]
    except Unsupported:
        return ""


def _backend(findings: Findings, wanted: str) -> Line:
    chosen = backend(findings, wanted)
    if not chosen:
        needed = found.DIRECTORY if wanted == _AUTO else wanted
        instead = "" if wanted == _AUTO else f'; or set `[mount] backend = "{_AUTO}"`'
        return GROUP.bad(
            "backend", f"none: {needed} does not work here", f"it takes {_mends(findings, needed)}{instead}"
        )
    if wanted != _AUTO:
        return GROUP.ok("backend", f"{chosen}, as set")
    better = [name for name in BACKENDS[: BACKENDS.index(chosen)] if findings.missing(name)]
    if not better:
        return GROUP.ok("backend", f"{chosen}, seen working")
    reasons = [f"{who} {verb} not work: {why}" for why, who, verb in _together(better, findings.reason, "does", "do")]
    mends = [f"for {who}: {mend}" for mend, who, _ in _together(better, partial(_mends, findings))]
    return GROUP.warn("backend", "; ".join([f"{chosen}, {_MEANING[chosen]}", *reasons]), "\n".join(mends))


def _mends(findings: Findings, name: str) -> str:
    return "; ".join(dict.fromkeys(line.mend for line in findings.missing(name)))


def _together(
    backends: Sequence[str], said_of: Callable[[str], str], one: str = "", more: str = ""
) -> Iterator[tuple[str, str, str]]:
    """What is said, of which of them, and the word for one or for more."""
    names: dict[str, list[str]] = {}
    for name in backends:
        names.setdefault(said_of(name), []).append(name)
    for said, who in names.items():
        yield said, " and ".join(who), more if len(who) > 1 else one


_MEANING = {
    found.FUSE: "which serves models by a process of its own, lazily",
    found.COMPLETE: "which mounts a model when all of it is here",
    found.DIRECTORY: "which shows a model as a plain folder when all of it is here",
}
