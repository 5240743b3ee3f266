"""How far the kernel reads ahead, as it says itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.content import Content, Generated
from tests.lab.daemon import Daemon
from tests.lab.program import wait_until
from tests.lab.registry import Registry
from tests.system.node import ok, segments_of

pytestmark = [pytest.mark.system, pytest.mark.alone]

_BDI = Path("/sys/class/bdi")


def _set(daemon: Daemon, size: int) -> list[str]:
    """The devices for which it says that it has set `size` KiB."""
    return re.findall(rf"set readahead volume=\S+ device=(\S+) kib={size}$", daemon.log_text(), re.MULTILINE)


def test_further_once_all_is_here_and_no_further_again_once_something_has_gone(folder: Path) -> None:
    files: dict[str, Content] = {"model.safetensors": Generated(40 << 20, seed=40)}
    here = folder / "here"
    here.mkdir()
    with Registry(folder / "registry") as registry, Daemon(folder / "daemon", {"fetch": {"prefetch": False}}) as daemon:
        model = registry.push.model(files)
        ok(daemon, "mount", model.reference, here)
        ok(daemon, "pull", model.reference)
        assert wait_until(lambda: bool(_set(daemon, 1024)), 10)
        (device,) = _set(daemon, 1024)
        setting = _BDI / device / "read_ahead_kb"
        assert setting.read_text().strip() == "1024"
        segment = max(segments_of(daemon))
        with segment.open("r+b") as file:
            file.write(b"rot")
        assert daemon.cli("verify").returncode == 1
        assert wait_until(lambda: _set(daemon, 128) == [device], 10)
        assert setting.read_text().strip() == "128"
        assert (here / "model.safetensors").read_bytes() == b"".join(files["model.safetensors"].blocks())
        ok(daemon, "umount", here)
