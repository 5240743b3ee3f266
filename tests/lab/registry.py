"""A real registry (docker-registry) on loopback, with a folder of its own.

What it served is read from its own access log, so it is its word and not ours. What that log has and has not:

- A line is written when a response has *ended*: a transfer under way is not in it yet. `served()` therefore waits until
  the log has been quiet for a moment.
- Method, path, status, body bytes written, the asker's name (User-Agent). The Range asked for is not logged: a ranged
  answer shows as status 206 with its length.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import re
import secrets
import shutil
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import debian
from tests.lab.ca import Authority
from tests.lab.program import Program, free_port, is_listening
from tests.lab.push import Push
from tests.lab.tokens import ISSUER, TokenServer

_LINE = re.compile(r'^\S+ - \S+ \[[^\]]*\] "([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) (\d+) "[^"]*" "(.*)"$')
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the registry has answered. `bytes` counts the response's body; `agent` is who asked."""

    method: str
    path: str
    query: str
    status: int
    bytes: int
    agent: str

    @property
    def digest(self) -> str:
        """The blob's digest, empty if it was no request for a blob."""
        blob = _BLOB.fullmatch(self.path)
        return blob[2] if blob else ""


class Registry:
    """`with Registry(folder) as registry:`; `registry.push` puts images and models into it.

    `users` (name → password) asks for Basic authentication, `tokens` for tokens of that server, `authority` serves TLS
    with a certificate of that authority. The same folder and port can be started again after `stop()`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: dict[str, str] | None = None,
        authority: Authority | None = None,
        tokens: TokenServer | None = None,
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.users = users
        self.tokens = tokens
        self.authority = authority
        self._program = Program(
            f"registry-{self.port}",
            [debian.docker_registry(), "serve", folder / "registry.json"],
            folder / "registry.log",
            lambda: is_listening(self.port),
            {"OTEL_TRACES_EXPORTER": "none"},
        )

    @property
    def pid(self) -> int:
        return self._program.pid

    @property
    def host(self) -> str:
        """As it stands in a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://{self.host}"

    @property
    def push(self) -> Push:
        """A way in, with all rights."""
        trust = ssl.create_default_context(cafile=str(self.authority.certificate)) if self.authority else None
        basic = next(iter(self.users.items())) if self.users else None
        storage = self.folder / "storage/docker/registry/v2"
        return Push(self.host, storage, trust, basic, self.tokens)

    def write_hosts(self, folder: Path, facade: str = "") -> None:
        """`hosts.toml` for this registry below `folder`: first the façade (`host:port`) if given, then itself."""
        # containerd's own form of `host:port` as a folder's name.
        home = folder / f"{self.host.replace(':', '_')}_"
        home.mkdir(parents=True, exist_ok=True)
        lines = [f'server = "{self.url}"']
        if self.authority:
            lines.append(f'ca = "{self.authority.certificate}"')
        if facade:
            lines += [f'[host."http://{facade}"]', '  capabilities = ["pull", "resolve"]']
        (home / "hosts.toml").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "registry.json").write_text(json.dumps(self._configuration(), indent=1))
        self._program.start()

    def stop(self) -> None:
        self._program.stop()

    def log_text(self) -> str:
        return self._program.log.read_text(errors="replace") if self._program.log.exists() else ""

    def forget(self) -> None:
        """Empties the log: what follows counts from here."""
        self._settle(0.2)
        with contextlib.suppress(FileNotFoundError):
            # The registry appends (O_APPEND), so it goes on at the new end.
            self._program.log.open("w").close()

    def served(self, quiet: float = 0.2) -> list[Request]:
        """Every request answered, in the order the answers ended, once the log has not grown for `quiet` seconds."""
        self._settle(quiet)
        return [found for line in self.log_text().splitlines() if (found := _parsed(line))]

    def blob_requests(self, digest: str = "", quiet: float = 0.2) -> list[Request]:
        """The successful GETs of blobs, of `digest` alone if given."""
        asked = (request for request in self.served(quiet) if request.method == "GET" and request.status in {200, 206})
        return [request for request in asked if request.digest and digest in {"", request.digest}]

    def bytes_of(self, digest: str) -> int:
        """Body bytes served of this blob."""
        return sum(request.bytes for request in self.blob_requests(digest))

    def bytes_served(self, quiet: float = 0.2) -> int:
        """Body bytes served in all, manifests and errors included."""
        return sum(request.bytes for request in self.served(quiet))

    def _settle(self, quiet: float) -> None:
        size, since = -1, time.monotonic()
        while self._program.log.exists() and time.monotonic() - since < quiet:
            if (now := self._program.log.stat().st_size) != size:
                size, since = now, time.monotonic()
            time.sleep(quiet / 10)

    def _configuration(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.host, "secret": secrets.token_hex(16), "relativeurls": True}
        if self.authority:
            pair = self.authority.issue(f"registry-{self.port}")
            http["tls"] = {"certificate": str(pair.certificate), "key": str(pair.key)}
        configuration: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn", "formatter": "json"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "storage")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
        }
        if self.users is not None:
            lines = [f"{name}:{_bcrypt(password)}" for name, password in self.users.items()]
            (self.folder / "htpasswd").write_text("\n".join(lines) + "\n")
            configuration["auth"] = {"htpasswd": {"realm": "lab", "path": str(self.folder / "htpasswd")}}
        if self.tokens is not None:
            configuration["auth"] = {
                "token": {
                    "realm": self.tokens.realm,
                    "service": self.tokens.service,
                    "issuer": ISSUER,
                    "rootcertbundle": str(self.tokens.roots),
                }
            }
        return configuration

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder / "storage", ignore_errors=True)


def _parsed(line: str) -> Request | None:
    found = _LINE.match(line)
    if found is None:
        return None
    path, _, query = found[2].partition("?")
    return Request(found[1], path, query, int(found[3]), int(found[4]), found[5])


def _bcrypt(password: str) -> str:
    """The only form docker-registry accepts in an htpasswd file; Python has it no more from 3.13 on, libcrypt has."""
    crypt = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = "".join(
        secrets.choice("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") for _ in range(21)
    )
    hashed: bytes | None = crypt(password.encode(), f"$2b$04${salt}.".encode())
    if not hashed or not hashed.startswith(b"$2"):
        raise debian.Unavailable("bcrypt: this machine's libcrypt does not offer it")
    return hashed.decode()
