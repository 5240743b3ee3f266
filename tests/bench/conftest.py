from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import debian, needs
from tests.lab.check import settled


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where a bench makes its folders: a short path, since sockets are in it. Nothing may be there when it has ended."""
    try:
        debian.docker_registry(), debian.nginx(), debian.containerd(), debian.runc(), debian.busybox()
        debian.oras(), debian.crane(), debian.aria2c(), debian.real_model()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    made = Path(tempfile.mkdtemp(prefix="mv-"))
    try:
        if missing := needs.missing_for_lazy(made):
            pytest.skip(missing)
        with settled(made):
            yield made
        assert list(made.iterdir()) == []
    finally:
        shutil.rmtree(made, ignore_errors=True)
