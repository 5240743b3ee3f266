"""Where a test that mounts has its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.mounts import unmount_below


@contextmanager
def lazy_place() -> Iterator[Path]:
    """A new folder where lazy mounts work; whatever is mounted, runs or is open there at the end fails the test. Skips where there is
    none, and where the block finds something of the laboratory unavailable."""
    made = needs.lazy_folder()
    try:
        if reason := needs.missing_for_lazy(made):
            pytest.skip(reason)
        with settled(made):
            yield made
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        unmount_below(made)
        shutil.rmtree(made, ignore_errors=True)
