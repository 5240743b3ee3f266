"""Docker's `config.json` (docker/cli `config/configfile`): `auths`, `credHelpers` and `credsStore`.

Order: the program that `credHelpers` names for the registry, then `credsStore`, then `auths`. The programs speak
docker-credential-helpers' protocol: `docker-credential-<name> get`, the registry on standard input, JSON on standard
output. A program that fails is no error by itself, for the registry may need nobody's name; its trouble is logged, and
told when it does. The file is read again whenever it changes.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from modelvold.errors import InvalidInput

log = logging.getLogger(__name__)

_LARGEST_FILE = 4 << 20
#: Credential programs call cloud services; a registry's own time-out is of that order.
_PROGRAM_SECONDS = 10.0
#: What a program said is used again this long: cloud registries give twelve hours, and a 401 asks again before.
_SAID_SECONDS = 600.0
#: A refusal this soon after asking would get the same words again.
_FRESH_SECONDS = 5.0
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
#: What Docker itself calls its registry in `auths` and to credential programs.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
#: A program's user name for an OAuth2 identity token, which needs a POST that few registries take.
_TOKEN_USER = "<token>"  # noqa: S105

Pair = tuple[str, str]
_T = TypeVar("_T")


class _Auth(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None


class _Config(msgspec.Struct):
    auths: dict[str, _Auth] | None = None
    cred_helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)
    creds_store: str | None = msgspec.field(name="credsStore", default=None)


class _Said(msgspec.Struct):
    username: str = msgspec.field(name="Username")
    secret: str = msgspec.field(name="Secret")


@dataclass(frozen=True, slots=True)
class _Answer:
    pair: Pair | None
    trouble: str
    at: float


def default_path(environment: Mapping[str, str], home: Path) -> Path:
    """Where Docker looks: `$DOCKER_CONFIG/config.json`, else `.docker/config.json` under `home`."""
    folder = environment.get("DOCKER_CONFIG")
    return (Path(folder) if folder else home / ".docker") / "config.json"


class DockerConfig:
    """One config file, thread-safe."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()  # guards the three below
        self._stamp: tuple[int, ...] | None = None
        self._config = _Config()
        self._said: dict[str, _Answer] = {}

    def of(self, address: str, path: str) -> Pair | None:
        """User name and password for the repository `path` at `address` (host[:port]). Raises InvalidInput when
        malformed.
        """
        config = self._read()
        key = _DOCKER_HUB_KEY if address in _DOCKER_HUB else address
        program = _by_registry(config.cred_helpers or {}, address) or config.creds_store
        if program:
            pair = self._ask(program, key, address)
            if pair is not None:
                return pair
        return self._listed(config.auths or {}, address, path)

    def forget(self, address: str) -> bool:
        """Drop what a program said of `address`, unless it has only just been asked. True if something was dropped."""
        with self._lock:
            said = self._said.get(address)
            if said is None or time.monotonic() - said.at < _FRESH_SECONDS:
                return False
            del self._said[address]
            return True

    def trouble(self, address: str) -> str:
        with self._lock:
            said = self._said.get(address)
            return said.trouble if said else ""

    def _read(self) -> _Config:
        try:
            found = self._file.stat()
            stamp: tuple[int, ...] = (found.st_ino, found.st_size, found.st_mtime_ns)
            with self._lock:
                if stamp == self._stamp:
                    return self._config
            with self._file.open("rb") as stream:
                config = msgspec.json.decode(stream.read(_LARGEST_FILE), type=_Config)
        except FileNotFoundError:
            stamp, config = (), _Config()
        except OSError as error:
            raise InvalidInput(f"{self._file}: {error.strerror}", "make it readable to the daemon") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # The decoder's own words name keys and places, never a value.
            raise InvalidInput(
                f"{self._file}: not a docker config: {error}", "mend it, or docker login again"
            ) from error
        with self._lock:
            if stamp != self._stamp:
                self._stamp, self._config, self._said = stamp, config, {}
        return config

    def _listed(self, auths: dict[str, _Auth], address: str, path: str) -> Pair | None:
        """The most specific key wins: `host/path` of a repository or a folder above it, then the host."""
        parts = path.split("/")
        for count in range(len(parts), -1, -1):
            entry = _by_registry(auths, "/".join([address, *parts[:count]]))
            if entry is None:
                continue
            pair = _pair(entry)
            if pair is None and entry.identitytoken:
                self._note(address, None, f"{self._file} has only an identity token for {address}")
            if pair is not None:
                return pair
        return None

    def _ask(self, program: str, key: str, address: str) -> Pair | None:
        with self._lock:
            said = self._said.get(address)
        if said is not None and time.monotonic() - said.at < _SAID_SECONDS:
            return said.pair
        pair, trouble = _run(program, key)
        if trouble:
            log.warning("fail credentials program=docker-credential-%s registry=%s cause=%s", program, address, trouble)
        return self._note(address, pair, trouble)

    def _note(self, address: str, pair: Pair | None, trouble: str) -> Pair | None:
        with self._lock:
            self._said[address] = _Answer(pair, trouble, time.monotonic())
        return pair


def _run(program: str, key: str) -> tuple[Pair | None, str]:
    name = f"docker-credential-{program}"
    if _PROGRAM.fullmatch(program) is None:
        return None, f"{name[:100]!r} is no program's name"
    try:
        done = subprocess.run(
            [name, "get"], input=key.encode(), capture_output=True, timeout=_PROGRAM_SECONDS, check=False
        )
    except FileNotFoundError:
        return None, f"{name} is not on the PATH"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{name} {'did not end in time' if isinstance(error, subprocess.TimeoutExpired) else error}"
    if done.returncode != 0:
        # Its words for "I know nothing of that registry" are part of the protocol.
        unknown = b"credentials not found" in done.stdout + done.stderr
        return None, "" if unknown else f"{name} ended with status {done.returncode}"
    return _understand(done.stdout, name)


def _understand(output: bytes, name: str) -> tuple[Pair | None, str]:
    try:
        said = msgspec.json.decode(output, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, f"{name} did not answer in JSON"
    if said.username == _TOKEN_USER:
        return None, f"{name} gave an identity token, which is not supported"
    return (said.username, said.secret), ""


def _pair(entry: _Auth) -> Pair | None:
    if entry.auth:
        try:
            username, colon, password = base64.b64decode(entry.auth, validate=False).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (username, password.rstrip("\0")) if colon and username else None
    return (entry.username, entry.password) if entry.username and entry.password else None


def _by_registry(table: Mapping[str, _T], wanted: str) -> _T | None:
    """The entry whose key names `wanted` (host[:port][/path]), however Docker's versions have written it."""
    if wanted in table:
        return table[wanted]
    host, slash, path = wanted.partition("/")
    names = {f"{name}{slash}{path}" for name in (_DOCKER_HUB if host in _DOCKER_HUB else {host})}
    return next((entry for key, entry in table.items() if _plain(key) in names), None)


def _plain(key: str) -> str:
    bare = key.partition("://")[2] or key
    return bare.rstrip("/").removesuffix("/v1").removesuffix("/v2")
