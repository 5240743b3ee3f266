"""The daemon under test: `python -m modelvold serve` as a program, with folders, sockets and ports of its own.

    <folder>/config.toml, daemon.log
    <folder>/store        [store] root
    <folder>/run          its socket and mounts
    <folder>/certs.d      [registry] hosts_dir, unless another is given

One for a user (`serve --user`) gets no flags: it finds its places by the XDG variables, and so do the verbs that ask it.

    <folder>/daemon.log, certs.d
    <folder>/config/modelvold/config.toml
    <folder>/data/modelvold       its store
    <folder>/runtime/modelvold    its socket, and links to what is shown

Its mounts outlive it by design (a restart adopts them), so `close()` takes away what is mounted below `run`, says in
`leftovers` what that was, and touches nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.lab.containerd import Modelvold
from tests.lab.mounts import unmount_below
from tests.lab.program import Program, free_port
from tests.lab.systemd import Systemd

_SOURCE = Path(__file__).resolve().parents[2] / "daemon"

Settings = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Python:
    """What runs our code: the words before `-m modelvold`, and what it needs in its environment."""

    words: tuple[str, ...] = (sys.executable,)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"PYTHONPATH": f"{_SOURCE}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")}
    )


class Daemon:
    """`with Daemon(folder, {"fetch": {"prefetch": False}}) as daemon:`; `settings` override ours. `for_user`: as
    `serve --user`, run by `python`, which may be somebody else's. `service` stands for systemd, and starts it."""

    def __init__(
        self,
        folder: Path,
        settings: Settings | None = None,
        *,
        hosts_dir: Path | None = None,
        for_user: bool = False,
        python: Python | None = None,
        service: Systemd | None = None,
    ) -> None:
        self.folder = folder
        self.root = folder / ("data/modelvold" if for_user else "store")
        self.run = folder / ("runtime/modelvold" if for_user else "run")
        self.socket = self.run / "modelvold.sock"
        self.hosts_dir = hosts_dir or folder / "certs.d"
        self.facade_port = free_port()
        self.metrics_port = free_port()
        self.leftovers: list[str] = []
        self.settings: Settings = {
            "registry": {"hosts_dir": str(self.hosts_dir), "docker_config": str(folder / "docker/config.json")},
            "log": {"level": "debug"},
            "store": {"reserve": ""},
        }
        if not for_user:
            self.settings |= {
                "store": {"root": str(self.root), "reserve": ""},
                "facade": {"listen": f"127.0.0.1:{self.facade_port}"},
                "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            }
        for section, values in (settings or {}).items():
            self.settings[section] = {**self.settings.get(section, {}), **values}
        self.file = folder / ("config/modelvold/config.toml" if for_user else "config.toml")
        self._made = [self.hosts_dir, self.file.parent] + ([] if for_user else [self.root, self.run])
        python = python or Python()
        self._python = python.words
        self._environment = {
            **python.environment,
            "PYTHONUNBUFFERED": "1",
            "DOCKER_CONFIG": str(folder / "docker"),
            **(_users_places(folder) if for_user else {"MODELVOLD_ADDRESS": str(self.socket)}),
        }
        serve = ["serve", "--user"] if for_user else ["serve", "--config", self.file, "--run", self.run]
        self._program = Program(
            f"modelvold-{folder.name}",
            [*self._python, "-m", "modelvold", *serve],
            folder / "daemon.log",
            self.is_answering,
            self._environment,
            service,
        )
        self._service = service

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def is_running(self) -> bool:
        return self._program.is_running

    @property
    def status(self) -> int | None:
        """The exit status of one that has ended by itself, or by a signal that was not sent from here: then that, negative."""
        return self._program.status

    @property
    def facade(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.facade_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def for_containerd(self) -> Modelvold:
        return Modelvold(self.socket, self.facade, self.root)

    def fuse_processes(self) -> list[int]:
        """Those that serve FUSE for it, or for one before it."""
        words = ["fuse", "--run", str(self.run)]
        return [
            running.pid
            for running in psutil.process_iter(["cmdline", "status"])
            if (running.info["cmdline"] or [])[3:6] == words and running.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def is_answering(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def login(self, host: str, user: str, password: str) -> None:
        """The node's own credentials for a registry, as `docker login` leaves them."""
        path = self.folder / "docker/config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else {"auths": {}}
        known["auths"][host] = {"username": user, "password": password}
        path.write_text(json.dumps(known))
        path.chmod(0o600)

    def configure(self, section: str, **values: object) -> None:
        """Takes effect at the next start."""
        self.settings.setdefault(section, {}).update(values)

    def start(self, patience: float = 30.0) -> None:
        """Returns when the socket answers. Raises Failed with the end of the log."""
        self._prepare()
        self._program.start(patience)

    def begin(self) -> None:
        """Starts it, and does not wait until it answers."""
        self._prepare()
        self._program.begin()

    def _prepare(self) -> None:
        for folder in self._made:
            folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text(_toml(self.settings))

    def stop(self) -> int | None:
        """SIGTERM; the exit status. What a service manager keeps for it goes."""
        status = self._program.stop()
        if self._service:
            self._service.discard()
        return status

    def kill9(self) -> None:
        """SIGKILL, as the kernel or a power cut would. The socket's file stays behind."""
        self._program.kill()

    def restart(self) -> None:
        """SIGTERM, then a start: `systemctl restart`, where there is one."""
        self._program.stop()
        self.start()

    def cli(self, *words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`modelvold WORDS…` against this daemon, with its end awaited; look at `returncode`."""
        return subprocess.run(
            [*self._python, "-m", "modelvold", *(str(word) for word in words)],
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def log_text(self) -> str:
        return self._program.log.read_text(errors="replace") if self._program.log.exists() else ""

    def close(self) -> None:
        self.stop()
        if self.run.exists():
            self.leftovers += [f"mount {mount.point} ({mount.type})" for mount in unmount_below(self.run)]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _users_places(folder: Path) -> dict[str, str]:
    """None of them is where the user's own are."""
    return {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "MODELVOLD_ADDRESS": "",
    }


def _toml(settings: Settings) -> str:
    """TOML's strings, booleans, numbers and arrays of strings are written as JSON's."""
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
