"""From what the probe found to lines: what is bad, what is only worse than it could be, and the backend that follows."""

from __future__ import annotations

import pytest
from modelvold.doctor import kernel
from modelvold.doctor.line import Level
from modelvold.mount import findings as found
from modelvold.mount.findings import Findings
from modelvold.mount.findings import Line as Tried

LINKS = Tried("hard links", True, frozenset({found.DIRECTORY}), "", "another file system")
BINDS = Tried(found.BINDS, True, frozenset(), "", "root")
EROFS = Tried("EROFS on files", True, frozenset({found.LAZY, found.COMPLETE}), "", "Linux 6.12")
EVENTS = Tried("events", True, frozenset({found.LAZY}), "", "Linux 6.14")
FUSE = Tried("FUSE", True, frozenset({found.FUSE}), "", "fusermount3, from the package fuse3")


def failing(tried: Tried, seen: str = "Operation not permitted") -> Tried:
    return Tried(tried.what, False, tried.needed_by, seen, tried.mend)


def levels(*tried: Tried, wanted: str = "auto") -> dict[str, str]:
    return {line.what: line.level.value for line in kernel.check("6.18.0", "x86_64", Findings(tried), wanted)}


def backend(*tried: Tried, wanted: str = "auto") -> tuple[str, str, str]:
    line = list(kernel.check("6.18.0", "x86_64", Findings(tried), wanted))[-1]
    assert line.what == "backend"
    return line.level.value, line.seen, line.mend


def test_all_well() -> None:
    said = levels(LINKS, BINDS, EROFS, EVENTS)
    assert set(said.values()) == {"ok"}
    assert list(said) == ["kernel", "hard links", "bind mounts", "EROFS on files", "events", "backend"]
    assert backend(LINKS, BINDS, EROFS, EVENTS) == ("ok", "lazy, seen working", "")
    assert backend(LINKS, BINDS, EROFS, EVENTS, wanted="complete") == ("ok", "complete, as set", "")


def test_what_keeps_a_better_backend_from_working_is_a_warning() -> None:
    assert levels(LINKS, BINDS, EROFS, failing(EVENTS)) | {"kernel": ""} == {
        "kernel": "",
        "hard links": "ok",
        "bind mounts": "ok",
        "EROFS on files": "ok",
        "events": "warn",
        "backend": "warn",
    }
    level, seen, mend = backend(LINKS, BINDS, EROFS, failing(EVENTS, "Invalid argument"))
    assert (level, mend) == ("warn", "for lazy: Linux 6.14")
    assert seen.startswith("complete, which mounts a model when all of it is here")
    assert seen.endswith("lazy does not work: events: Invalid argument")


def test_each_better_backend_has_its_mend() -> None:
    assert (
        backend(LINKS, failing(EROFS), failing(EVENTS))[2]
        == "for lazy: Linux 6.12; Linux 6.14\nfor complete: Linux 6.12"
    )
    assert backend(LINKS, failing(EROFS))[2] == "for lazy and complete: Linux 6.12"
    assert levels(failing(BINDS), LINKS, EROFS)["bind mounts"] == "warn"
    level, seen, mend = backend(LINKS, failing(EROFS), failing(FUSE, "fusermount3 is not on PATH"))
    assert level == "warn"
    assert seen == (
        "directory, which shows a model as a plain folder when all of it is here; lazy and complete do not work: "
        "EROFS on files: Operation not permitted; fuse does not work: FUSE: fusermount3 is not on PATH"
    )
    assert mend == "for lazy and complete: Linux 6.12\nfor fuse: fusermount3, from the package fuse3"


def test_fuse_shows_a_model_lazily_where_the_kernel_does_not() -> None:
    level, seen, mend = backend(LINKS, failing(EROFS), FUSE)
    assert (level, mend) == ("warn", "for lazy: Linux 6.12")
    assert seen.startswith("fuse, which serves models by a process of its own, lazily; lazy does not work: ")


def test_what_only_a_worse_backend_lacks_is_no_warning() -> None:
    lines = kernel.check("6.18.0", "x86_64", Findings((LINKS, EROFS, EVENTS, failing(FUSE))), "auto")
    said = {line.what: line for line in lines}
    assert {line.level for line in said.values()} == {Level.OK}
    assert said["FUSE"].seen == "no: Operation not permitted; lazy works, and needs none of it"
    assert levels(LINKS, EROFS, EVENTS, failing(FUSE), wanted="fuse")["FUSE"] == "bad"


@pytest.mark.parametrize(
    ("tried", "wanted", "bad"),
    [
        ((failing(LINKS), failing(EROFS)), "auto", {"hard links", "backend"}),
        ((LINKS, EROFS, failing(EVENTS)), "lazy", {"events", "backend"}),
        ((LINKS, failing(EROFS)), "complete", {"EROFS on files", "backend"}),
        ((failing(LINKS), EROFS), "auto", {"hard links"}),
    ],
)
def test_what_nothing_goes_without_is_bad(tried: tuple[Tried, ...], wanted: str, bad: set[str]) -> None:
    assert {what for what, level in levels(*tried, wanted=wanted).items() if level == Level.BAD} == bad


def test_a_setting_that_does_not_work_says_what_would() -> None:
    level, seen, mend = backend(LINKS, EROFS, failing(EVENTS), wanted="lazy")
    assert (level, seen) == ("bad", "none: lazy does not work here")
    assert mend == 'it takes Linux 6.14; or set `[mount] backend = "auto"`'
    assert kernel.backend(Findings((LINKS, failing(EVENTS))), "lazy") == ""
