"""One daemon to a store, for its life."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelvold.errors import Refused


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Rule 3: one writer. A second daemon on one store would make holes, and holes read as zeros."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"store {path.parent}: another modelvold holds it", "stop that one first, or give --root another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
