"""Which hosts to ask for a registry: the folder of containerd's `hosts.toml` files, read again whenever one changes.

For `registry.example:5000` under each root, the first folder that exists decides: `registry.example_5000_`,
`registry.example:5000`, `_default`. A folder without hosts.toml (or with an empty one) may hold certificates in
Docker's layout.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from modelvold.errors import InvalidInput
from modelvold.registry import address as addresses
from modelvold.registry import hosts_toml
from modelvold.registry.hosts_toml import Host

#: Anyone on loopback can make the façade look a name up; what is remembered of it stays small.
_MOST_REMEMBERED = 1024
_LARGEST_FILE = 1 << 20

_Stamp = tuple[object, ...]


class Hosts:
    """Looks up hosts by namespace (a reference's host). Thread-safe. Without roots every registry is its own host."""

    def __init__(self, *roots: Path) -> None:
        self._roots = roots
        self._remembered: dict[str, tuple[_Stamp, tuple[Host, ...]]] = {}
        self._lock = threading.Lock()  # guards _remembered

    def of(self, namespace: str) -> tuple[Host, ...]:
        """Mirrors in the file's order, then the server. Raises InvalidInput for no host name, or a file that is
        malformed.
        """
        addresses.split(namespace)
        folder = self._folder(namespace)
        if folder is None:
            return hosts_toml.default(namespace)
        stamp = _stamp(folder)
        with self._lock:
            remembered = self._remembered.get(namespace)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        hosts = _read(folder, namespace)
        with self._lock:
            self._remembered[namespace] = (stamp, hosts)
            while len(self._remembered) > _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return hosts

    def upstream_of(self, namespace: str, facade: str | None) -> tuple[Host, ...]:
        """As `of`, without our own listener `facade` (`host:port`).

        Where the listener stands as the server, the namespace's own host takes its place: the file says how containerd
        reaches the registry, not that the registry is us.
        """
        hosts = self.of(namespace)
        if facade is None:
            return hosts
        kept = tuple(host for host in hosts if not _is_facade(host, facade))
        if any(not host.mirror for host in kept):
            return kept
        server = next(host for host in hosts if not host.mirror)
        tls_named = server.tls != hosts_toml.NO_TLS
        return (*kept, *hosts_toml.default(namespace, replace(server, after_plain_answer=False), tls_named=tls_named))

    def names(self, namespace: str, facade: str) -> bool:
        """Whether the file for `namespace` names the listener `facade`. Raises as `of`."""
        addresses.split(namespace)
        return self._folder(namespace) is not None and any(_is_facade(host, facade) for host in self.of(namespace))

    def _folder(self, namespace: str) -> Path | None:
        name, colon, port = namespace.rpartition(":")
        names = [f"{name}_{port}_"] if colon and name else []
        for root in self._roots:
            for folder in (*names, namespace, "_default"):
                if (root / folder).is_dir():
                    return root / folder
        return None


def _is_facade(host: Host, facade: str) -> bool:
    return addresses.is_same_listener(host.address, facade, host.scheme)


def _stamp(folder: Path) -> _Stamp:
    """Changes whenever hosts.toml is written or replaced, or a file comes to or goes from the folder."""
    above = folder.stat()
    try:
        found = (folder / "hosts.toml").stat()
    except FileNotFoundError:
        return str(folder), above.st_mtime_ns
    return str(folder), above.st_mtime_ns, found.st_ino, found.st_size, found.st_mtime_ns


def _read(folder: Path, namespace: str) -> tuple[Host, ...]:
    file = folder / "hosts.toml"
    try:
        with file.open("rb") as stream:
            document = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        document = b""
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}", "make it readable to the daemon") from error
    if len(document) > _LARGEST_FILE:
        raise InvalidInput(f"{file}: larger than {_LARGEST_FILE >> 20} MiB")
    if document.strip():
        return hosts_toml.parse(document, file, namespace)
    tls = hosts_toml.certificates(list(folder.iterdir()))
    return hosts_toml.default(namespace, Host("https", namespace, tls=tls), tls_named=tls != hosts_toml.NO_TLS)
