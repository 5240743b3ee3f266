"""What machine this is."""

from __future__ import annotations

import platform

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """In Go's words, which are OCI's."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())
