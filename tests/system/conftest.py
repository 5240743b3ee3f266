"""What system tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import debian, needs
from tests.lab.backends import BACKENDS, Backend
from tests.lab.check import settled


@pytest.fixture
def folder() -> Iterator[Path]:
    """Empty, on a file system with pre-content events; whatever is mounted, runs or is open there at the end fails the test."""
    try:
        debian.docker_registry(), debian.busybox(), debian.containerd(), debian.runc()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    made = needs.lazy_folder()
    try:
        if missing := needs.missing_for_lazy(made):
            pytest.skip(missing)
        with settled(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module", params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of them: what is tested with it holds for all."""
    chosen: Backend = request.param
    return chosen
