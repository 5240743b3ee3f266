"""Settings: a TOML file and flags → frozen values, every key checked. With `rpc.places` the only reader of settings and environment.

Rules: a key that is not known is an error, for a setting that is silently not used is worse than none. Flags
override the file. The file at its usual place may be missing; a file that was named may not. `ALLOWED` says for
every key what it takes, in errors and in docs/configuration.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from modelvold.errors import InvalidInput
from modelvold.registry.docker_config import default_path
from modelvold.registry.proxies import NO_PROXIES, Proxies
from modelvold.rpc.places import DEFAULT_FILE, DEFAULT_RUN, SOCKET, user_places
from modelvold.store.amount import Amount, duration, size

_LARGEST_FILE = 1 << 20
#: user:role:type:level, nothing of which ends a mount option.
_CONTEXT = r"^([A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:[A-Za-z0-9_.-]+:[A-Za-z0-9_.,:-]+)?$"
#: Bytes a second: so that each of 64 connections gets the 4 KiB below which it counts as silent.
_SLOWEST = 256 << 10

ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        "store.root": 'an absolute path, such as "/var/lib/modelvold"',
        "store.quota": 'an amount such as "200 GiB", a share of the disk such as "80%", or "" for none',
        "store.reserve": 'an amount such as "50 GiB", a share of the disk such as "16%", or "" for none',
        "store.keep": 'a duration such as "7d", "12h", "30m" or "0s", or "" for as long as there is room',
        "store.verify": '"serve", "segment" or "layer"',
        "store.scrub": 'a duration such as "30d" or "12h", or "" for never',
        "fetch.connections": "a whole number from 1 to 64",
        "fetch.per_host": "a whole number from 1 to 64",
        "fetch.bandwidth": 'an amount of bytes a second, such as "500 MiB" or "62.5 MB", or "" for none',
        "fetch.prefetch": "true or false",
        "fetch.deadline": "a number of seconds, more than 0 and at most 3600",
        "registry.hosts_dir": 'an absolute path, such as "/etc/containerd/certs.d"',
        "registry.docker_config": "the absolute path of a docker config.json",
        "mount.backend": '"auto", "lazy", "fuse", "complete" or "directory"',
        "mount.selinux": 'an SELinux context, such as "system_u:object_r:container_ro_file_t:s0", or "" for that one',
        "facade.listen": '"host:port" on loopback, such as "127.0.0.1:7878", or "" for off',
        "metrics.listen": '"host:port", such as "127.0.0.1:7879", or "" for off',
        "log.level": '"debug", "info", "warning" or "error"',
        "log.format": '"text" or "json"',
    },
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. `host` is an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


Serving = Literal["serve", "segment", "layer"]


class Store(msgspec.Struct, frozen=True):
    """`root`: the folder of everything we hold. `quota`: what segments may take of its disk, `reserve`: what is left to others
    there. `keep`: seconds for which a model stays that nobody uses, None: until there is no room. `verify`: what must have matched
    before a byte is served (store.showing.Verify). `scrub`: seconds within which all is read again, 0: never.
    """

    root: Path = Path("/var/lib/modelvold")
    quota: Amount = Amount()
    #: More than kubelet wants to see free of the disk with containerd's images, or else it evicts pods (imagefs.available<15%, its
    #: default; of its own disk it is 10 %).
    reserve: Amount = Amount(share=0.16)
    keep: float | None = None
    verify: Serving = "serve"
    scrub: float = 30 * 86400.0


_Connections = Annotated[int, msgspec.Meta(ge=1, le=64)]
_Deadline = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Fetch(msgspec.Struct, frozen=True):
    """`connections` at a time in all, and to one host at most `per_host`; `bandwidth`: bytes a second of all of them together, None:
    what there is. `deadline` in seconds without a byte of progress, for a waiting read.
    """

    connections: int = 32
    per_host: int = 16
    bandwidth: int | None = None
    prefetch: bool = True
    deadline: float = 60.0


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hosts_dir`: containerd's; `docker_config`: where `docker login` wrote. Either may not exist."""

    hosts_dir: Path = Path("/etc/containerd/certs.d")
    docker_config: Path | None = None


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`selinux`: the context of volumes' files, "" for one that every container may read, where there is SELinux."""

    backend: Literal["auto", "lazy", "fuse", "complete", "directory"] = "auto"
    selinux: Annotated[str, msgspec.Meta(pattern=_CONTEXT)] = ""


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: Path | None = None
    quota: str | None = None
    reserve: str | None = None
    keep: str | None = None
    verify: Serving = Store().verify
    scrub: str | None = None


class _Fetched(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    connections: _Connections = Fetch().connections
    per_host: _Connections = Fetch().per_host
    bandwidth: str | None = None
    prefetch: bool = Fetch().prefetch
    deadline: _Deadline = Fetch().deadline


class _Listening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: str | None = None


@dataclass(frozen=True, slots=True)
class Facade:
    """`listen` is loopback; None: off."""

    listen: Endpoint | None = Endpoint("127.0.0.1", 7878)


@dataclass(frozen=True, slots=True)
class Metrics:
    """None: off. Health alone in this version."""

    listen: Endpoint | None = Endpoint("127.0.0.1", 7879)


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    store: _Stored = _Stored()
    fetch: _Fetched = _Fetched()
    registry: Registry = Registry()
    mount: Mount = Mount()
    facade: _Listening = _Listening()
    metrics: _Listening = _Listening()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that steers the daemon. `run` is the folder of mounts and socket, `address` the socket; both
    absolute. `proxies` are between the daemon and registries. `for_user`: it serves one user and no containerd.
    """

    store: Store
    fetch: Fetch
    registry: Registry
    mount: Mount
    facade: Facade
    metrics: Metrics
    log: Log
    run: Path
    address: Path
    proxies: Proxies = NO_PROXIES
    for_user: bool = False

    @property
    def docker_config(self) -> Path:
        """The file with the node's own credentials, as set or where Docker keeps it; it may not exist."""
        assert self.registry.docker_config is not None  # noqa: S101 (`load` filled it in)
        return self.registry.docker_config


def load(
    file: Path | None = None,
    *,
    root: Path | None = None,
    run: Path | None = None,
    address: Path | None = None,
    for_user: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """The settings of `file` (None: the usual one, if it is there), overridden by the others where given. `for_user` has
    its usual places in that user's folders, and listens nowhere unless it is set.

    Raises InvalidInput naming file, key and what the key takes, or the variable of the environment.
    """
    usual_file, usual_root, usual_run = (
        user_places(environment) if for_user else (DEFAULT_FILE, Store().root, DEFAULT_RUN)
    )
    settings = _read(file, usual_file)
    where = file or usual_file
    facade = _listening(where, "facade.listen", settings.facade.listen, None if for_user else Facade().listen)
    if facade and not facade.is_loopback:
        raise _not_allowed(where, "facade.listen", f"{facade} is not loopback, and others may not ask the façade")
    registry = settings.registry
    if registry.docker_config is None:
        docker = default_path(environment, Path(environment.get("HOME") or "/root"))
        registry = Registry(registry.hosts_dir, docker.absolute())
    run = (run or usual_run).absolute()
    return Config(
        store=_store(where, (root or settings.store.root or usual_root).absolute(), settings.store),
        fetch=_fetch(where, settings.fetch),
        registry=registry,
        mount=settings.mount,
        facade=Facade(facade),
        metrics=Metrics(
            _listening(where, "metrics.listen", settings.metrics.listen, None if for_user else Metrics().listen)
        ),
        log=settings.log,
        run=run,
        address=(address or run / SOCKET).absolute(),
        proxies=Proxies.of(environment),
        for_user=for_user,
    )


def _read(named: Path | None, usual: Path) -> _File:
    file = named or usual
    try:
        with file.open("rb") as stream:
            document = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        if named is None:
            return _File()
        raise InvalidInput(f"{file}: no such file", "name another with --config, or leave it out") from None
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}", "make it readable, or name another with --config") from error
    if len(document) > _LARGEST_FILE:
        raise InvalidInput(f"{file}: larger than {_LARGEST_FILE >> 20} MiB", "this is no settings file")
    try:
        table = msgspec.toml.decode(document)
        return msgspec.convert(table, _File, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise _explained(file, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: not TOML: {error}", "mend the file") from error


def _decode(kind: type, value: Any) -> Any:
    """Paths are strings in the file. What this raises, msgspec gives the key's name."""
    if kind is Path and isinstance(value, str) and value.startswith("/") and "\0" not in value:
        return Path(value)
    raise ValueError(f"got {value!r}"[:200])


def _listening(file: Path, key: str, text: str | None, usual: Endpoint | None) -> Endpoint | None:
    if not text:
        return usual if text is None else None
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError as error:
        raise _not_allowed(file, key, f"{text[:200]!r} has no IP address and port") from error
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 1 << 16):
        raise _not_allowed(file, key, f"{text[:200]!r} has no port from 1 to 65535")
    return Endpoint(address, int(port))


def _store(file: Path, root: Path, stored: _Stored) -> Store:
    usual = Store()
    return Store(
        root=root,
        quota=_read_as(_quota, file, "store.quota", stored.quota, usual.quota),
        reserve=_read_as(_reserve, file, "store.reserve", stored.reserve, usual.reserve),
        keep=_read_as(duration, file, "store.keep", stored.keep, usual.keep),
        verify=stored.verify,
        scrub=_read_as(_scrub, file, "store.scrub", stored.scrub, usual.scrub),
    )


def _fetch(file: Path, fetched: _Fetched) -> Fetch:
    return Fetch(
        connections=fetched.connections,
        per_host=fetched.per_host,
        bandwidth=_read_as(_bandwidth, file, "fetch.bandwidth", fetched.bandwidth, Fetch().bandwidth),
        prefetch=fetched.prefetch,
        deadline=fetched.deadline,
    )


_T = TypeVar("_T")


def _read_as(read: Callable[[str], _T], file: Path, key: str, text: str | None, usual: _T) -> _T:
    """What `text` says, or what is usual where nothing does."""
    if text is None:
        return usual
    try:
        return read(text)
    except ValueError as error:
        raise _not_allowed(file, key, str(error)) from error


def _quota(text: str) -> Amount:
    quota = Amount.parse(text)
    if text and quota == Amount():
        raise ValueError(f"{text!r} is room for nothing")
    return quota


def _reserve(text: str) -> Amount:
    reserve = Amount.parse(text)
    if reserve.share == 1:
        raise ValueError(f"{text!r} of the disk leaves room for nothing")
    return reserve


def _bandwidth(text: str) -> int | None:
    bandwidth = Amount.parse(text)
    if bandwidth.share or text.endswith("%"):
        raise ValueError(f"{text!r} is a share, and nobody knows of how much")
    if text and bandwidth.bytes < _SLOWEST:
        raise ValueError(f"{text!r} is less than {size(_SLOWEST)} a second, at which reads fail for want of progress")
    return bandwidth.bytes or None


def _scrub(text: str) -> float:
    seconds = duration(text)
    if seconds == 0:
        raise ValueError(f"{text!r} would be without an end")
    return seconds or 0.0


_WHERE = re.compile(r"(?P<cause>.*?)(?: - at `\$\.(?P<key>[^`]*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def _explained(file: Path, text: str) -> InvalidInput:
    form = _WHERE.fullmatch(text)
    cause, key = (form["cause"], form["key"] or "") if form else (text, "")
    unknown = _UNKNOWN.fullmatch(cause)
    if unknown:
        place = f"[{key}]" if key else "the file"
        names = [name.partition(".")[2] for name in ALLOWED if name.startswith(f"{key}.")]
        known = names or sorted({f"[{name.partition('.')[0]}]" for name in ALLOWED})
        what = f"{key}.{unknown[1]}" if key else unknown[1]
        return InvalidInput(f"{file}: {what}: not known", f"{place} takes {', '.join(known)}")
    return _not_allowed(file, key, f"{cause[:1].lower()}{cause[1:]}")


def _not_allowed(file: Path, key: str, cause: str) -> InvalidInput:
    return InvalidInput(f"{file}: {key}: {cause}", f"it takes {ALLOWED.get(key, f'keys, under the heading [{key}]')}")
