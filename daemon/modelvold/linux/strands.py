"""Who has mounts of some kind: by the mount tables of all processes, which are read and never followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from modelvold.linux import mounts
from modelvold.linux.mounts import MountEntry

_PROC = Path("/proc")


def elsewhere(is_meant: Callable[[MountEntry], bool]) -> dict[str, list[str]]:
    """Of each mount namespace but our own that has mounts that `is_meant`, the first program, as `name (pid)`: by those mounts' roots. What
    ends meanwhile, or may not be looked at, is left out."""
    names: dict[str, list[str]] = {}
    seen = {_namespace(os.getpid())}
    for pid in sorted(int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()):
        with suppress(OSError, ValueError):
            namespace = _namespace(pid)
            if namespace not in seen:
                seen.add(namespace)
                roots = {entry.root for entry in mounts.mountinfo(pid) if is_meant(entry)}
                name = f"{Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()} ({pid})" if roots else ""
                for root in roots:
                    names.setdefault(root, []).append(name)
    return names


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115
