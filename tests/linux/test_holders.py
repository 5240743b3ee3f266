"""Who has files open below a folder, asked of real processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from modelvold.linux.holders import holders


def test_an_open_file_and_a_working_directory_are_held_and_a_neighbour_is_not(tmp_path: Path) -> None:
    """Only what lies below the folder counts, not what its name begins."""
    inside, beside = tmp_path / "volume", tmp_path / "volume-2"
    for folder in (inside, beside):
        folder.mkdir()
        (folder / "file").touch()
    us = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    with (beside / "file").open():
        assert holders(inside) == []
    with (inside / "file").open():
        assert holders(inside) == [f"{us} ({os.getpid()})"]
    sleeper = subprocess.Popen(["/bin/sleep", "60"], cwd=inside)
    try:
        assert holders(inside) == [f"sleep ({sleeper.pid})"]
    finally:
        sleeper.kill()
        sleeper.wait()
    assert holders(inside) == []
