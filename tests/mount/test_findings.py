"""Which backend follows from what was seen."""

from __future__ import annotations

import pytest
from modelvold.errors import Unsupported
from modelvold.mount.findings import BINDS, COMPLETE, DIRECTORY, FUSE, LAZY, Findings, Line

EROFS = Line("EROFS on files", False, frozenset({LAZY, COMPLETE}), "Function not implemented", "Linux 6.12")
EVENTS = Line("pre-content events", False, frozenset({LAZY}), "Invalid argument", "Linux 6.14")
LINKS = Line("hard links", False, frozenset({DIRECTORY}), "Operation not permitted", "another file system")
DEVICE = Line("reads through FUSE", False, frozenset({FUSE}), "/dev/fuse: No such file or directory", "/dev/fuse")
GOOD = Line("something else", True, frozenset({LAZY, FUSE, COMPLETE, DIRECTORY}))


@pytest.mark.parametrize(
    ("bad", "backend", "why"),
    [
        ((), "lazy", "seen working at start"),
        ((DEVICE,), "lazy", "seen working at start"),
        ((EVENTS,), "fuse", "pre-content events: Invalid argument"),
        ((EROFS,), "fuse", "EROFS on files: Function not implemented"),
        (
            (EVENTS, DEVICE),
            "complete",
            "pre-content events: Invalid argument; reads through FUSE: /dev/fuse: No such file or directory",
        ),
        (
            (EROFS, DEVICE),
            "directory",
            "EROFS on files: Function not implemented; reads through FUSE: /dev/fuse: No such file or directory",
        ),
        ((EVENTS, DEVICE, LINKS), "complete", Findings((EVENTS, DEVICE)).reason(LAZY, FUSE)),
    ],
)
def test_auto_takes_the_best_that_works_and_says_why(bad: tuple[Line, ...], backend: str, why: str) -> None:
    assert Findings((GOOD, *bad)).choose("auto") == (backend, why)


def test_auto_takes_nothing_that_was_not_tried() -> None:
    tried = Line("hard links", True, frozenset({DIRECTORY}))
    assert Findings((tried, EROFS)).choose("auto") == ("directory", "EROFS on files: Function not implemented")


def test_a_backend_that_is_set_is_taken_or_nothing() -> None:
    findings = Findings((GOOD, EVENTS))
    assert findings.choose("directory") == ("directory", "as set")
    with pytest.raises(
        Unsupported, match=r"by the backend lazy: pre-content events: Invalid argument; it takes Linux 6.14"
    ):
        findings.choose("lazy")


def test_no_backend_at_all() -> None:
    with pytest.raises(Unsupported, match="another file system"):
        Findings((EROFS, LINKS)).choose("auto")


def test_whether_anything_can_be_bound() -> None:
    assert Findings((Line(BINDS, True, frozenset()),)).can_bind
    assert not Findings((Line(BINDS, False, frozenset(), "Operation not permitted"),)).can_bind
    assert not Findings(()).can_bind
