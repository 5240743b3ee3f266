"""The systemd unit: what it must not say, and that systemd understands it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "modelvold.service"

#: Each gives a service its own mount namespace (systemd.exec(5)): its mounts would not be the host's.
NAMESPACES = {
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "InaccessiblePaths",
    "LoadCredential",
    "LogNamespace",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
}


def _settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_mounts_are_the_hosts_and_outlive_the_daemon() -> None:
    settings = _settings()
    assert not NAMESPACES & settings.keys()
    assert settings["RuntimeDirectoryPreserve"] == "yes"
    assert settings["KillMode"] == "process"  # whoever serves FUSE stays with its readers
    assert settings["Restart"] == "always"
    assert settings["StartLimitIntervalSec"] == "0"
    assert "CAP_SYS_ADMIN" in settings["CapabilityBoundingSet"].split()
    assert "containerd.service" in settings["Before"].split()


def test_readers_outlive_the_daemon() -> None:
    """The gate and its notes are kept over a restart, and closed at a stop; the watchdog is longer than a look at those who wait."""
    settings = _settings()
    assert int(settings["FileDescriptorStoreMax"]) >= 2
    assert settings.get("FileDescriptorStorePreserve", "restart") == "restart"
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert settings["WatchdogSec"] == "30s"
    assert settings.get("WatchdogSignal", "SIGABRT") == "SIGABRT"


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "modelvold.service"
    unit.write_text(UNIT.read_text().replace(_settings()["ExecStart"], "/bin/true"))
    found = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
