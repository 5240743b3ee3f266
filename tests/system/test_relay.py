"""The relay that puts a registry far away: what it delays, and what it leaves as it is."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.lab import debian
from tests.lab.check import settled
from tests.lab.content import Generated
from tests.lab.program import free_port, wait_until
from tests.lab.registry import Registry
from tests.lab.relay import Relay

MIB = 1 << 20
ROUND_TRIP = 0.02


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    with settled(tmp_path):
        yield


@contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server's port; `serve` has each connection in a thread of its own, which must end when the connection does."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def alone(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=alone, args=listener.accept()[:1]))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


def echo(connection: socket.socket) -> None:
    while got := connection.recv(MIB):
        connection.sendall(got)


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=20)


def read(connection: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (piece := connection.recv(MIB)):
        got += piece
    return bytes(got)


def test_every_exchange_takes_a_round_trip_and_opening_one_more() -> None:
    with served(echo) as port, Relay(port, ROUND_TRIP) as relay:
        started = time.monotonic()
        with connect(relay) as connection:
            for n in range(5):
                connection.sendall(b"%d" % n)
                assert connection.recv(10) == b"%d" % n
                took, started = time.monotonic() - started, time.monotonic()
                assert took >= ROUND_TRIP * (1 if n else 2)


def test_a_server_that_speaks_first_is_heard_after_two_round_trips() -> None:
    with served(lambda connection: connection.sendall(b"220 hello")) as port, Relay(port, ROUND_TRIP) as relay:
        started = time.monotonic()
        with connect(relay) as connection:
            assert read(connection, 100) == b"220 hello"
            assert time.monotonic() - started >= 2 * ROUND_TRIP


def test_what_is_sent_without_waiting_is_delayed_once() -> None:
    """A hundred times half a second would be a minute."""
    with served(echo) as port, Relay(port, 0.5) as relay, connect(relay) as connection:
        started = time.monotonic()
        for n in range(100):
            connection.sendall(b"%02d" % n)
            time.sleep(0.001)
        assert read(connection, 200) == b"".join(b"%02d" % n for n in range(100))
        assert 1.0 <= time.monotonic() - started < 25


def test_a_long_transfer_both_ways_is_unchanged() -> None:
    content = Generated(96 * MIB, seed=1)
    with served(echo) as port, Relay(port, ROUND_TRIP) as relay, connect(relay) as connection:

        def send() -> None:
            for block in content.blocks():
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        summed = hashlib.sha256()
        while got := connection.recv(MIB):
            summed.update(got)
        sender.join()
    expected = hashlib.sha256()
    for block in content.blocks():
        expected.update(block)
    assert summed.digest() == expected.digest()


def test_connections_do_not_wait_for_each_other() -> None:
    with served(echo) as port, Relay(port, ROUND_TRIP) as relay:
        connections = [connect(relay) for _ in range(20)]
        for n, connection in enumerate(connections):
            connection.sendall(b"%d" % n * 1000)
        for n, connection in reversed(list(enumerate(connections))):
            assert read(connection, len(b"%d" % n) * 1000) == b"%d" % n * 1000
            connection.close()


def test_a_reader_that_does_not_read_stops_the_sender() -> None:
    sent = [0]

    def pour(connection: socket.socket) -> None:
        while True:
            sent[0] += connection.send(bytes(MIB))

    with served(pour) as port, Relay(port, ROUND_TRIP) as relay, connect(relay):
        seen = -1
        while seen != sent[0]:
            seen = sent[0]
            time.sleep(0.3)
        # The relay's bound, and what the kernel holds for four sockets.
        assert 0 < seen < 96 * MIB


def test_a_rate_is_kept_by_all_connections_together() -> None:
    def give(connection: socket.socket) -> None:
        connection.sendall(bytes(MIB))

    with served(give) as port, Relay(port, 0, rate=8 * MIB) as relay:
        started = time.monotonic()
        connections = [connect(relay) for _ in range(2)]
        for connection in connections:
            assert read(connection, 2 * MIB) == bytes(MIB)
            connection.close()
        assert time.monotonic() - started >= 0.25


def test_an_end_of_one_way_leaves_the_other_open() -> None:
    def answer_at_the_end(connection: socket.socket) -> None:
        connection.sendall(b"%d" % len(read(connection, MIB)))

    with served(answer_at_the_end) as port, Relay(port, ROUND_TRIP) as relay, connect(relay) as connection:
        connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert read(connection, 10) == b"1000"
        assert connection.recv(1) == b""


def test_an_asker_that_goes_away_is_missed_by_a_server_that_sends() -> None:
    gone = threading.Event()

    def pour(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(bytes(MIB))
        finally:
            gone.set()

    with served(pour) as port, Relay(port, ROUND_TRIP) as relay:
        with connect(relay) as connection:
            assert connection.recv(10)
        assert gone.wait(20)
        assert wait_until(lambda: not relay.connections)


def test_nobody_behind_it() -> None:
    with Relay(free_port(), ROUND_TRIP) as relay, connect(relay) as connection, suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_the_relay_ends_with_connections_open() -> None:
    with served(echo) as port:
        with Relay(port, ROUND_TRIP) as relay:
            connection = connect(relay)
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        with connection, suppress(ConnectionResetError):
            assert connection.recv(1) == b""


@pytest.mark.system
def test_a_model_is_pulled_through_it(tmp_path: Path) -> None:
    """Blobs are served in place, though the registry is asked under another name than its own."""
    try:
        debian.docker_registry()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    content = Generated(3_000_001, seed=7)
    with Registry(tmp_path / "registry") as registry, Relay(registry.port) as relay:
        model = registry.push.model({"a.bin": content})
        registry.forget()
        repository = f"http://{relay.host}/v2/models/lab"
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        asked = urllib.request.Request(f"{repository}/manifests/v1", headers=accept)
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert f"sha256:{hashlib.sha256(answer.read()).hexdigest()}" == model.digest
        blob = f"{repository}/blobs/{model.layers['a.bin']}"
        with urllib.request.urlopen(blob, timeout=20) as answer:
            assert answer.url == blob
            assert answer.read() == b"".join(content.blocks())
        assert [request.status for request in registry.served()] == [200, 200]
