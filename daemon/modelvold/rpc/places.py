"""Where a daemon's settings, store and socket are, unless somebody says otherwise: for the daemon and for who asks it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DEFAULT_FILE = Path("/etc/modelvold/config.toml")
DEFAULT_RUN = Path("/run/modelvold")
#: In the run folder.
SOCKET = "modelvold.sock"
_NAME = "modelvold"


def client_address(flag: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The daemon's socket for whoever asks it: the flag, else MODELVOLD_ADDRESS, else the usual place: the system's for
    root, a user's own for others, who may not ask the system's."""
    if flag or environment.get("MODELVOLD_ADDRESS"):
        return flag or Path(environment["MODELVOLD_ADDRESS"])
    run = DEFAULT_RUN if os.geteuid() == 0 else user_places(environment)[2]
    return run / SOCKET


def user_places(environment: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """A user's settings file, store and run folder (XDG Base Directory Specification, which ignores a path that is not
    absolute). Without a runtime folder the run folder lies among the user's state."""
    home = Path(environment.get("HOME") or "/")

    def base(variable: str, usual: Path) -> Path:
        named = Path(environment.get(variable) or "")
        return (named if named.is_absolute() else usual) / _NAME

    state = base("XDG_STATE_HOME", home / ".local/state")
    run = base("XDG_RUNTIME_DIR", Path())
    return (
        base("XDG_CONFIG_HOME", home / ".config") / DEFAULT_FILE.name,
        base("XDG_DATA_HOME", home / ".local/share"),
        run if run.is_absolute() else state / "run",
    )
