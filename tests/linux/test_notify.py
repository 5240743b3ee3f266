"""systemd's protocols, spoken to a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.linux.notify import Notify

from tests.lab.program import wait_until
from tests.lab.systemd import Systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def test_words_as_systemd_takes_them(manager: socket.socket) -> None:
    notify = Notify({"NOTIFY_SOCKET": manager.getsockname()})
    assert notify.is_heard
    notify.ready()
    notify.stopping()
    notify.drop("gate")
    assert [heard(manager) for _ in range(3)] == [
        ["READY=1"],
        ["STOPPING=1"],
        ["FDSTOREREMOVE=1", "FDNAME=gate"],
    ]


def test_an_abstract_socket_is_heard_too() -> None:
    name = f"modelvold-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        Notify({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(listening) == ["READY=1"]


def test_a_descriptor_is_kept_under_its_name(tmp_path: Path) -> None:
    """The same file, whoever closes ours; given back in another process, it is where LISTEN_FDS says."""
    with Systemd(tmp_path) as systemd:
        memory = os.memfd_create("m")
        os.write(memory, b"what was")
        Notify(dict(systemd.environment)).keep("notes", memory)
        os.close(memory)
        assert systemd.kept == ["notes"]
        [(_, descriptor)] = systemd.given()
        assert os.pread(descriptor, 100, 0) == b"what was"
        os.close(descriptor)
        assert (systemd.environment["LISTEN_FDS"], systemd.environment["LISTEN_FDNAMES"]) == ("1", "notes")
        Notify(dict(systemd.environment)).drop("notes")
        assert systemd.kept == []


def test_what_is_given_is_taken_out_of_the_environment() -> None:
    """A child that looked would take it for its own; what is another process's is left alone."""
    given = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "gate:stored:gate", "WATCHDOG_USEC": "6000000"}
    ours = {**given, "LISTEN_PID": str(os.getpid()), "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    notify = Notify(ours)
    assert notify.received == {"gate": [3, 5], "stored": [4]}
    assert notify.interval == 2.0
    assert ours == {"PATH": "/bin"}
    others = Notify({**given, "LISTEN_PID": "1", "WATCHDOG_PID": "1"})
    assert (others.received, others.interval) == ({}, None)


def test_a_life_sign_is_sent_when_one_is_due(tmp_path: Path) -> None:
    """However often it is called for; a third of the time after which one is missed."""
    with Systemd(tmp_path, watchdog=0.6) as systemd:
        notify = Notify(dict(systemd.environment))
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            notify.alive()
        assert wait_until(lambda: len(systemd.signs) >= 3, 5)
        assert all(later - earlier > 0.15 for earlier, later in zip(systemd.signs, systemd.signs[1:], strict=False))
        assert len(systemd.signs) <= 4


def test_nothing_happens_where_nobody_listens(tmp_path: Path) -> None:
    silent = Notify({"WATCHDOG_USEC": "3000000"})
    gone = Notify({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "3000000"})
    assert (silent.is_heard, gone.is_heard) == (False, True)
    for notify in (silent, gone):
        notify.ready()
        notify.alive()
        notify.keep("gate", 0)


def test_a_manager_that_does_not_read_costs_no_life_sign_any_time(manager: socket.socket) -> None:
    """Its socket is full; the loop that signs must go on."""
    notify = Notify({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1"})
    started = time.monotonic()
    for _ in range(3000):
        notify.alive()
    assert time.monotonic() - started < 4
    assert heard(manager) == ["WATCHDOG=1"]
