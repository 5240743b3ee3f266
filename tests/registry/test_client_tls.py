"""Ranges over TLS, whose records are taken as they come: as many as are there, and never a wait for more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from modelvold import errors
from modelvold.registry.client import Client

from tests.fakes.authority import Authority
from tests.fakes.registry import FakeRegistry, generated
from tests.registry.asking import drain, open_range, read_range
from tests.registry.conftest import WriteHosts

SIZE = 300_000
CONTENT = generated(SIZE, seed=9)
FRAMINGS = pytest.mark.parametrize("framing", ["", "chunked", "until_close"])


@pytest.fixture
def registry(authority: Authority, write_hosts: WriteHosts) -> Iterator[FakeRegistry]:
    with FakeRegistry(tls=authority.issue("tls")) as made:
        write_hosts(made.address, f'server = "{made.origin}"\nca = "{authority.ca}"\n')
        yield made


@FRAMINGS
@pytest.mark.parametrize("piece", [1 << 10, 1 << 20])
def test_exactly_the_bytes_asked_for(client: Client, registry: FakeRegistry, framing: str, piece: int) -> None:
    digest = registry.put_blob(CONTENT)
    if framing:
        setattr(registry.behaviour, framing, True)
    for start, end in ((0, SIZE), (0, 1), (16_383, 16_385), (4095, 200_001)):
        with open_range(client, registry.address, digest, start, end) as body:
            assert drain(body, piece) == CONTENT.read(start, end - start)
    kept = len({request.connection for request in registry.requests})
    assert kept == (4 if framing == "until_close" else 1)


def test_bytes_are_given_as_they_come(client: Client, registry: FakeRegistry) -> None:
    """In the middle of a record or not; what has not come is not waited for."""
    digest = registry.put_blob(CONTENT)
    for held in (1, 1000, 16_384, 100_000):
        registry.behaviour.stall_after = held
        registry.behaviour.resume.clear()
        with open_range(client, registry.address, digest, 0, SIZE) as body:
            view, got = memoryview(bytearray(SIZE)), 0
            while got < held:
                got += body.readinto(view[got:])
            assert (got, bytes(view[:got])) == (held, CONTENT.read(0, held))
            registry.behaviour.resume.set()
            assert drain(body, 1 << 20) == CONTENT.read(held, SIZE - held)


@FRAMINGS
def test_a_body_cut_short(client: Client, registry: FakeRegistry, framing: str) -> None:
    digest = registry.put_blob(CONTENT)
    registry.behaviour.cut_after = 123_456
    if framing:
        setattr(registry.behaviour, framing, True)
    with open_range(client, registry.address, digest, 0, SIZE) as body:
        with pytest.raises(errors.Unreachable, match=f"sent 123456 of {SIZE} bytes"):
            drain(body, 1 << 20)
        assert body.got == 123_456


def test_silence_and_dripping_end(client: Client, registry: FakeRegistry) -> None:
    digest = registry.put_blob(CONTENT)
    registry.behaviour.stall_after = 20_000
    silent = pytest.raises(errors.Unreachable, match=r"sent 20000 of 300000 bytes: silent for 0\.3 s")
    with open_range(client, registry.address, digest, 0, SIZE, timeout=0.3) as body, silent:
        drain(body)
    registry.behaviour.stall_after = None
    registry.behaviour.rate, registry.behaviour.piece = 20, 1
    slow = pytest.raises(errors.Unreachable, match=r"too slow, \d+ bytes in 1 s")
    with open_range(client, registry.address, digest, 0, SIZE, timeout=1) as body, slow:
        drain(body)


def test_bytes_behind_the_declared_end_never_reach_the_next_answer(client: Client, registry: FakeRegistry) -> None:
    digest = registry.put_blob(CONTENT)
    registry.behaviour.extra, registry.behaviour.extra_undeclared = b"HTTP/1.1 200 OK\r\n\r\n", True
    for start in (0, 100, 200):
        assert read_range(client, registry.address, digest, start, start + 50_000) == CONTENT.read(start, 50_000)
