"""An nginx on loopback before a docker-registry, whose blobs it serves itself from the registry's storage folder.

    with Registry(folder / "registry") as registry, Nginx(folder / "nginx", registry, rate=60_000_000) as nginx:
        nginx.host                                  # stands in references for the registry's host

- Manifests and all the rest are the registry's answers, passed on; a blob is a file sent by `sendfile`, with ranges, its digest
  in `Docker-Content-Digest`. A blob is served in whatever repository it is asked for.
- `rate`, in bytes a second, is that of one *connection*, whatever is asked on it: the kernel paces it (SO_MAX_PACING_RATE, which a
  listening socket hands down; nginx takes one made by us as it does from its predecessor in an upgrade). nginx's own
  `limit_rate` would not do: it counts by the request and lets a whole second's worth of each through at once, so that a client
  of ranges shorter than that is not limited at all.
- Its log has a line for every answer that has ended, with the range asked for and the number of the connection.

Run as a program, this module opens the socket and becomes nginx: `python nginx.py PORT RATE COMMAND…`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import debian
from tests.lab.program import Program, free_port, is_listening
from tests.lab.registry import Registry

#: socket(7); Python has no name for it.
_SO_MAX_PACING_RATE = 47


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer given. `bytes` counts its body, `range` is the header as asked, `connection` tells one from another."""

    method: str
    path: str
    status: int
    bytes: int
    range: str
    connection: int
    agent: str

    @property
    def is_of_blob(self) -> bool:
        return "/blobs/sha256:" in self.path and self.method == "GET"


class Nginx:
    def __init__(self, folder: Path, registry: Registry, *, rate: int = 0) -> None:
        self.folder = folder
        self.port = free_port()
        self._registry = registry
        self._access = folder / "access.log"
        configuration = folder / "nginx.conf"
        command = [*debian.nginx(), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]
        self._program = Program(
            f"nginx-{self.port}",
            [sys.executable, "-m", "tests.lab.nginx", str(self.port), str(rate), *command],
            folder / "nginx.log",
            lambda: is_listening(self.port),
            {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    @property
    def host(self) -> str:
        """As it stands in a reference."""
        return f"127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Empties the log: what follows counts from here."""
        self._settle(0.2)
        os.truncate(self._access, 0)

    def served(self, quiet: float = 0.2) -> list[Answer]:
        """Every answer, in the order in which they ended, once the log has not grown for `quiet` seconds."""
        self._settle(quiet)
        return [Answer(**json.loads(line)) for line in self._access.read_text().splitlines()]

    def _settle(self, quiet: float) -> None:
        size, since = -1, time.monotonic()
        while time.monotonic() - since < quiet:
            if (now := self._access.stat().st_size) != size:
                size, since = now, time.monotonic()
            time.sleep(quiet / 10)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nginx.conf").write_text(self._configuration())
        self._program.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.stop()

    def _configuration(self) -> str:
        storage = self._registry.folder / "storage/docker/registry/v2/blobs/sha256"
        paths = "".join(
            f"{what}_temp_path {self.folder}/{what};\n" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""
daemon off; {user} worker_processes 2; pid {self.folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
{paths}
log_format lab escape=json '{_LINE}';
access_log {self._access} lab;
sendfile on; keepalive_requests 1000000; default_type application/octet-stream;
server {{
  listen {self.host};
  location ~ "^/v2/.+/blobs/sha256:((..)[0-9a-f]{{62}})$" {{
    alias {storage}/$2/$1/data;
    add_header Docker-Content-Digest sha256:$1;
  }}
  location / {{ proxy_pass {self._registry.url}; proxy_set_header Host $http_host; }}
}}
}}
"""


_LINE = (
    '{"method":"$request_method","path":"$uri","status":$status,"bytes":$body_bytes_sent,'
    '"range":"$http_range","connection":$connection,"agent":"$http_user_agent"}'
)


def _become(port: str, rate: str, *command: str) -> None:
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=511)
    if int(rate):
        listener.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(rate))
    listener.setblocking(
        False
    )  # as nginx expects of its predecessor's: else a worker waits in `accept` for what another one took
    listener.set_inheritable(True)
    os.environ["NGINX"] = f"{listener.fileno()};"
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(*sys.argv[1:])
