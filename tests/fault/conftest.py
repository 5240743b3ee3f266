"""What fault tests share: the tally that the session ends with, how often they do what they do, and a folder to do it in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.tally import Tally
from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.mounts import unmount_below

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """One for the session: see `tests.fault.tally`."""
    return request.config.stash.setdefault(_TALLY, Tally())


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often everything is done: once in `make check`, three times in `make fault` (FAULT_ROUNDS)."""
    return int(os.environ.get("FAULT_ROUNDS", "1"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Empty, on a file system where lazy mounts work; whatever is mounted, runs or is open there at the end fails the test."""
    yield from _folder()


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """As `folder`, for all tests of a module."""
    yield from _folder()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tally = terminalreporter.config.stash.get(_TALLY, None)
    if tally:
        terminalreporter.write_line(f"fault: {tally}", red=tally.wrong > 0, bold=True)


def _folder() -> Iterator[Path]:
    made = needs.lazy_folder()
    try:
        debian.docker_registry()
        if missing := needs.missing_for_lazy(made):
            pytest.skip(missing)
        with settled(made):
            yield made
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        unmount_below(made)
        shutil.rmtree(made, ignore_errors=True)
