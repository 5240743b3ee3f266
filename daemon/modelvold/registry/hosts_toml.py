"""containerd's `hosts.toml`: bytes in, the hosts to ask for a namespace out. Pure.

Rules (containerd `docs/hosts.md`, `core/remotes/docker/config/hosts.go`):

- `[host."URL"]` tables are mirrors, asked in the file's order; then the root table's `server`, which is the namespace's
  own host where the file names none. Root keys belong to the server.
- `/v2` is appended to a path that does not end in it, unless `override_path`. No `capabilities` means all of them.
- A host written with `http://` and any TLS key, on a port that does not say 80, is tried with TLS first; so is a
  loopback host on port 443. Plain HTTP follows only when what answered does not speak TLS: a certificate that fails
  never leads to it.

Unlike containerd, which skips a file it cannot read, a malformed file is an error that names it: silence would send
requests, and credentials, to hosts that the file's author meant to replace. Keys unknown here are left alone, for the
file is containerd's.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from modelvold.errors import InvalidInput
from modelvold.registry import address as addresses

PULL, RESOLVE = "pull", "resolve"
_CAPABILITIES = frozenset({PULL, RESOLVE, "push", "referrers"})
_REMEDY = "mend the file; containerd reads it too"
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|ns|h|m|s)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_KINDS: dict[type, str] = {str: "string", bool: "boolean", dict: "table"}
_T = TypeVar("_T")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to believe and who we are: CA files beside the system's, pairs of certificate and key (None: the same
    file).
    """

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    verify: bool = True


NO_TLS = Tls()


@dataclass(frozen=True, slots=True)
class Host:
    """One place to ask. `path` is what stands before `/<repository>/manifests/…`; `dial_timeout` in seconds.

    `mirror` is false for the namespace's server. `after_plain_answer`: ask only when the host before it answered
    without TLS.
    """

    scheme: str
    address: str
    path: str = "/v2"
    capabilities: frozenset[str] = _CAPABILITIES
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold secrets
    tls: Tls = NO_TLS
    mirror: bool = False
    after_plain_answer: bool = False
    dial_timeout: float | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def parse(document: bytes, file: Path, namespace: str) -> tuple[Host, ...]:
    """The hosts of `file`, whose bytes are `document`, for the registry `namespace`, in the order to ask them.

    Raises InvalidInput naming the file and the key.
    """
    try:
        root = tomllib.loads(document.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{file}: not TOML: {error}", _REMEDY) from error
    mirrors = _typed(root, "host", dict, {}, str(file))
    hosts: list[Host] = []
    for url, table in mirrors.items():
        what = f'{file}: host."{url}"'
        if not isinstance(table, dict):
            raise InvalidInput(f"{what}: not a table", _REMEDY)
        hosts += _tls_first(_host(url, table, file, what, mirror=True), table)
    server = _typed(root, "server", str, "", str(file))
    if server:
        return (*hosts, *_tls_first(_host(server, root, file, f"{file}: server", mirror=False), root))
    named = _settings(root, file, str(file))
    return (*hosts, *default(namespace, named, tls_named=_has_tls(root)))


def default(namespace: str, settings: Host | None = None, *, tls_named: bool = False) -> tuple[Host, ...]:
    """The hosts of `namespace` where nothing names others; `settings` lends its headers, TLS and timeout."""
    base = settings or Host("https", namespace)
    base = replace(base, path="/v2", mirror=False)
    if namespace == "docker.io":
        return (replace(base, scheme="https", address="registry-1.docker.io"),)
    if not addresses.is_loopback(namespace):
        return (replace(base, scheme="https", address=namespace),)
    plain = replace(base, scheme="http", address=namespace)
    if not tls_named and addresses.port_of(namespace, "http") != 443:
        return (plain,)
    # Nobody can stand between us and ourselves, so without a CA named the certificate is not looked at, as in
    # containerd.
    verify = base.tls.verify and bool(base.tls.ca)
    secure = replace(plain, scheme="https", tls=replace(base.tls, verify=verify))
    return (secure, replace(plain, after_plain_answer=True))


def certificates(names: list[Path]) -> Tls:
    """Docker's layout of a folder without hosts.toml: `*.crt` are CAs, `x.cert` beside `x.key` is a client's pair."""
    ca = tuple(sorted(name for name in names if name.suffix == ".crt"))
    pairs = tuple((name, name.with_suffix(".key")) for name in sorted(names) if name.suffix == ".cert")
    return Tls(ca=ca, client=tuple(pair for pair in pairs if pair[1] in names))


def _tls_first(host: Host, table: dict[str, Any]) -> tuple[Host, ...]:
    if host.scheme == "https" or not _has_tls(table) or addresses.port_of(host.address, "http") == 80:
        return (host,)
    return (replace(host, scheme="https"), replace(host, after_plain_answer=True))


def _has_tls(table: dict[str, Any]) -> bool:
    return any(key in table for key in ("ca", "client", "skip_verify"))


def _host(url: str, table: dict[str, Any], file: Path, what: str, *, mirror: bool) -> Host:
    try:
        parts = urlsplit(url if url.startswith("http") else f"https://{url}")
    except ValueError as error:
        raise InvalidInput(f"{what}: {error}", _REMEDY) from error
    if parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise InvalidInput(f"{what}: not of the form http(s)://host[:port][/path]", _REMEDY)
    address = parts.netloc.rpartition("@")[2].lower()
    try:
        addresses.split(address)
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error.message}", _REMEDY) from error
    path = posixpath.normpath(parts.path) if parts.path else ""
    if not _typed(table, "override_path", bool, False, what) and not path.endswith("/v2"):
        path = f"{path.rstrip('/')}/v2"
    return replace(
        _settings(table, file, what), scheme=parts.scheme, address=address, path=path.rstrip("/"), mirror=mirror
    )


def _settings(table: dict[str, Any], file: Path, what: str) -> Host:
    capabilities = _strings(table, "capabilities", what)
    for capability in capabilities:
        if capability not in _CAPABILITIES:
            raise InvalidInput(
                f"{what}: capability {capability!r} is none of {', '.join(sorted(_CAPABILITIES))}", _REMEDY
            )
    _typed(table, "override_path", bool, False, what)  # wrong even where there is no path for it to keep
    return Host(
        scheme="",
        address="",
        capabilities=frozenset(capabilities) or _CAPABILITIES,
        headers=_headers(table, what),
        tls=Tls(
            ca=tuple(file.parent / name for name in _strings(table, "ca", what)),
            client=_pairs(table, file.parent, what),
            verify=not _typed(table, "skip_verify", bool, False, what),
        ),
        dial_timeout=_seconds(_typed(table, "dial_timeout", str, "", what), what),
    )


def _headers(table: dict[str, Any], what: str) -> tuple[tuple[str, str], ...]:
    named = _typed(table, "header", dict, {}, what)
    headers = [(name, text) for name in named for text in _strings(named, name, f"{what}: header")]
    for name, text in headers:
        if _HEADER_NAME.fullmatch(name) is None or not (text.isascii() and text.isprintable()):
            raise InvalidInput(f"{what}: header {name!r} cannot be sent", _REMEDY)
    return tuple(headers)


def _pairs(table: dict[str, Any], folder: Path, what: str) -> tuple[tuple[Path, Path | None], ...]:
    named = table.get("client", [])
    pairs = []
    for entry in [named] if isinstance(named, str) else named if isinstance(named, list) else [None]:
        files = [entry] if isinstance(entry, str) else entry
        if not isinstance(files, list) or len(files) not in {1, 2} or not all(isinstance(f, str) for f in files):
            raise InvalidInput(f"{what}: client is neither a file nor a list of [certificate, key]", _REMEDY)
        key = folder / files[1] if len(files) == 2 and files[1] else None
        pairs.append((folder / files[0], key))
    return tuple(pairs)


def _seconds(duration: str, what: str) -> float | None:
    if not duration:
        return None
    if re.fullmatch(f"(?:{_DURATION.pattern})+", duration) is None:
        raise InvalidInput(f"{what}: dial_timeout {duration!r} is no duration such as '10s'", _REMEDY)
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration)) or None


def _strings(table: dict[str, Any], key: str, what: str) -> list[str]:
    named = table.get(key, [])
    texts = [named] if isinstance(named, str) else named
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{what}: {key} is neither a string nor a list of strings", _REMEDY)
    return texts


def _typed(table: dict[str, Any], key: str, kind: type[_T], absent: _T, what: str) -> _T:
    named = table.get(key, absent)
    if not isinstance(named, kind):
        raise InvalidInput(f"{what}: {key} is no {_KINDS[kind]}", _REMEDY)
    return named
