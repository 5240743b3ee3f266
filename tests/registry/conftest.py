"""What the registry's tests share: a client set up in a line, and the rule that nothing outlives a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.registry.proxies import NO_PROXIES, Proxies

from tests.fakes.authority import Authority

MakeClient = Callable[..., Client]
WriteHosts = Callable[[str, str], Path]


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Threads and descriptors are what they were."""
    threads, descriptors = set(threading.enumerate()), _open_files()
    yield
    assert set(threading.enumerate()) == threads
    assert _open_files() == descriptors


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[MakeClient]:
    """`make_client(facade=…, docker_config=…, proxies=…)`; hosts.toml files lie under `tmp_path / "certs.d"`."""
    with ExitStack() as stack:

        def make(
            *,
            facade: str | None = None,
            docker_config: Path | None = None,
            proxies: Proxies = NO_PROXIES,
            connect_timeout: float = 5,
            read_timeout: float = 5,
        ) -> Client:
            return stack.enter_context(
                Client(
                    Hosts(tmp_path / "certs.d"),
                    Credentials(docker_config),
                    facade=facade,
                    proxies=proxies,
                    connect_timeout=connect_timeout,
                    read_timeout=read_timeout,
                )
            )

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    return make_client()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def write_hosts(tmp_path: Path) -> WriteHosts:
    """Write the hosts.toml of a registry; returns the file."""

    def write(host: str, text: str) -> Path:
        name, _, port = host.partition(":")
        file = tmp_path / "certs.d" / (f"{name}_{port}_" if port else name) / "hosts.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write
