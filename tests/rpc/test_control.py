"""The operator's door and its client over a real socket; the probes' door over a real port."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from modelvold import errors
from modelvold.errors import Exhausted, Failure, InUse, NotFound, Refused, Unreachable
from modelvold.lending.report import Checked, Collected, NodeReport, Progress, Report, VolumeReport, WaitingRead
from modelvold.rpc import control
from modelvold.rpc.control import ControlClient, control_door
from modelvold.rpc.gen import control_pb2, control_pb2_grpc
from modelvold.rpc.health import Health
from modelvold.rpc.server import Server

NODE = NodeReport(
    "0.1.0",
    "lazy",
    "seen working",
    "/var/lib/modelvold",
    "ok",
    1 << 40,
    1 << 42,
    1 << 41,
    5,
    1.5,
    "127.0.0.1:7878",
    True,
    9,
    2,
    "",
    quota=1 << 41,
    reserve=1 << 38,
    room=-3,
    evicted=1 << 39,
    not_durable="ext4 without a journal",
    scrubbed=12.5,
    wrong_segments=4,
    snapshots=14,
    snapshots_in_use=5,
)
VOLUME = VolumeReport(
    id="v1",
    reference="host/m:v1",
    manifest="sha256:0",
    state="lazy",
    backend="lazy",
    path="/run/modelvold/volumes/v1",
    size=1 << 45,
    present=3,
    durable=2,
    verified=1,
    segments=7,
    segments_complete=1,
    rate=2.5,
    eta=-1.0,
    waiting=(WaitingRead(12, "python3", 0.25), WaitingRead(13, "cat", 1.0)),
    consumers=("pod a", "/mnt \u00fc"),
    last_error="none yet",
    pinned=True,
    used=3.5,
    poisoned=("python3 (12)", "vllm \u00fc"),
)
UNUSED = replace(VOLUME, waiting=(), consumers=(), pinned=False, used=-1.0, poisoned=())
STEP = Progress("host/m:v1", 10, 5, 4, 3, 2.5, done=False)
CHECK = Checked("host/m:v1", 1 << 45, 1 << 44, 3, 2, 2.5, done=False)
COLLECTED = [Collected("host/m:v1", "sha256:0", 1 << 44), Collected("host/m:v1", "sha256:1", 0)]

_Step = TypeVar("_Step")


class InMemory:
    """An operator whose pull and check wait between two steps."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.failure: Failure | None = None
        self.go_on, self.ended, self.stepped = threading.Event(), threading.Event(), threading.Event()
        self.cancelled: Callable[[], bool] = lambda: False

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.failure:
            raise self.failure

    def report(self, reference: str | None) -> Report:
        self._note("report", reference)
        return Report(NODE, (VOLUME, UNUSED))

    def mount(
        self, reference: str, directory: Path, cancelled: Callable[[], bool]
    ) -> Iterator[Progress | VolumeReport]:
        self._note("mount", reference, directory)
        yield STEP
        yield VOLUME

    def unmount(self, directory: Path) -> None:
        self._note("unmount", directory)

    def pull(self, reference: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        self._note("pull", reference)
        yield from self._in_two_steps(STEP, replace(STEP, present=10, durable=10, verified=10, done=True), cancelled)

    def remove(self, reference: str) -> int:
        self._note("remove", reference)
        return 1 << 50

    def pin(self, reference: str) -> None:
        self._note("pin", reference)

    def unpin(self, reference: str) -> None:
        self._note("unpin", reference)

    def collect(self, dry_run: bool) -> Sequence[Collected]:
        self._note("collect", dry_run)
        return COLLECTED

    def verify(self, reference: str | None, repair: bool, cancelled: Callable[[], bool]) -> Iterator[Checked]:
        self._note("verify", reference, repair)
        yield from self._in_two_steps(CHECK, replace(CHECK, read=CHECK.size, done=True), cancelled)

    def _in_two_steps(self, first: _Step, last: _Step, cancelled: Callable[[], bool]) -> Iterator[_Step]:
        self.cancelled = cancelled
        try:
            yield first
            self.stepped.set()
            while not self.go_on.wait(0.01) and not cancelled():
                pass
            yield last
        finally:
            self.ended.set()


@pytest.fixture
def operator() -> InMemory:
    return InMemory()


@pytest.fixture
def client(operator: InMemory, tmp_path: Path) -> Iterator[ControlClient]:
    address = tmp_path / "run" / "m.sock"
    with Server(address, [control_door(operator)]), ControlClient(address) as asking:
        yield asking


def test_values_come_back_as_they_were_given(client: ControlClient, operator: InMemory) -> None:
    report = client.report()
    assert report == Report(NODE, (VOLUME, UNUSED))
    assert list(client.mount("host/m:v1", Path("/mnt/a b"))) == [STEP, VOLUME]
    client.unmount(Path("/mnt/a b"))
    assert client.remove("host/m") == 1 << 50
    client.report("host/m")
    client.pin("host/m")
    client.unpin("host/m@sha256:0")
    assert [*client.collect(dry_run=True), *client.collect(dry_run=False)] == 2 * COLLECTED
    assert operator.asked == [
        ("report", None),
        ("mount", "host/m:v1", Path("/mnt/a b")),
        ("unmount", Path("/mnt/a b")),
        ("remove", "host/m"),
        ("report", "host/m"),
        ("pin", "host/m"),
        ("unpin", "host/m@sha256:0"),
        ("collect", True),
        ("collect", False),
    ]


def test_names_that_are_no_unicode_are_shown_without_it(operator: InMemory, client: ControlClient) -> None:
    named = replace(VOLUME, waiting=(WaitingRead(1, "a\udcff", 0.0),), last_error="\udc80")
    operator.mount = lambda *_: iter([named])  # type: ignore[method-assign]
    assert list(client.mount("m", Path("/mnt"))) == [
        replace(named, waiting=(WaitingRead(1, "a?", 0.0),), last_error="?")
    ]


def test_a_pull_tells_every_step_as_it_comes(client: ControlClient, operator: InMemory) -> None:
    steps = client.pull("host/m:v1")
    assert next(steps) == STEP
    operator.go_on.set()
    assert [step.done for step in steps] == [True]
    assert operator.ended.wait(10)


def test_a_check_tells_every_step_as_it_comes(client: ControlClient, operator: InMemory) -> None:
    steps = client.verify(None, repair=True)
    assert next(steps) == CHECK
    operator.go_on.set()
    assert list(steps) == [replace(CHECK, read=CHECK.size, done=True)]
    assert operator.ended.wait(10)
    assert [step.done for step in client.verify("host/m", repair=False)] == [False, True]
    assert operator.asked == [("verify", None, True), ("verify", "host/m", False)]


def test_what_was_collected_is_summed_for_other_clients(client: ControlClient, tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/run/m.sock") as channel:
        stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
        assert stub.Collect(control_pb2.CollectRequest()).freed == 1 << 44


@pytest.mark.parametrize("ask", [lambda c: c.pull("host/m:v1"), lambda c: c.verify("host/m:v1", repair=True)])
def test_closing_it_cancels_it(
    client: ControlClient, operator: InMemory, ask: Callable[[ControlClient], Generator[object, None, None]]
) -> None:
    steps = ask(client)
    next(steps)
    assert operator.stepped.wait(10)
    assert not operator.cancelled()
    assert "answers" in [thread.name for thread in threading.enumerate()]
    steps.close()
    assert "answers" not in [thread.name for thread in threading.enumerate()]
    assert operator.ended.wait(10)
    assert operator.cancelled()


def test_pulls_leave_threads_for_others(
    client: ControlClient, operator: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = control._MOST_WAITING // 2
    pulls = [
        *(client.pull(f"m{n}") for n in range(control._MOST_WAITING - checks)),
        *(client.verify(f"m{n}", repair=False) for n in range(checks)),
    ]
    for pull in pulls:
        next(pull)
    with pytest.raises(Exhausted, match="16 pulls, mounts and checks wait already"):
        next(client.pull("one/more"))
    with pytest.raises(Exhausted, match="verify all: 16 pulls"):
        next(client.verify(None, repair=False))
    assert client.report().node == NODE
    operator.go_on.set()
    for pull in pulls:
        assert [step.done for step in pull] == [True]
    assert next(client.pull("one/more")) == STEP


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Failure)]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("remedy", ["", "mend it; then \u00fc try again"])
def test_failures_come_back_with_class_cause_and_remedy(
    client: ControlClient, operator: InMemory, kind: type[Failure], remedy: str
) -> None:
    operator.failure = kind("host/m:v1: caf\u00e9; refused", remedy)
    asks: list[Callable[[], object]] = [
        client.report,
        lambda: client.remove("m"),
        lambda: client.pin("m"),
        lambda: client.unpin("m"),
        lambda: client.collect(dry_run=True),
        lambda: list(client.pull("m")),
        lambda: list(client.verify("m", repair=False)),
    ]
    for ask in asks:
        with pytest.raises(Failure) as raised:
            ask()
        assert type(raised.value) is kind
        assert (raised.value.message, raised.value.remedy) == (operator.failure.message, remedy)


def test_other_clients_see_the_remedy_in_the_text(client: ControlClient, operator: InMemory, tmp_path: Path) -> None:
    operator.failure = InUse("m: used by pod a", "stop it")
    with grpc.insecure_channel(f"unix:{tmp_path}/run/m.sock") as channel:
        stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as raised:
            stub.Remove(control_pb2.RemoveRequest(reference="m"))
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert raised.value.details() == "m: used by pod a; stop it"


def test_a_text_longer_than_headers_may_be_still_arrives(client: ControlClient, operator: InMemory) -> None:
    operator.failure = NotFound("x" * 100_000, "\u00fc" * 10_000)
    with pytest.raises(NotFound) as raised:
        client.report()
    assert raised.value.message.startswith("x" * 1000)
    assert raised.value.remedy.startswith("\u00fc" * 100)


def test_what_no_room_raised_on_purpose_points_to_the_log(client: ControlClient, operator: InMemory) -> None:
    operator.report = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    with pytest.raises(Failure, match="see the log"):
        client.report()


def test_nobody_there(tmp_path: Path) -> None:
    address = tmp_path / "m.sock"
    with ControlClient(address) as client, pytest.raises(Unreachable, match="there is no socket") as raised:
        client.report()
    assert "modelvold serve" in raised.value.remedy
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address))
    with ControlClient(address) as client, pytest.raises(Unreachable, match="nobody listens"):
        client.remove("m")
    with ControlClient(address) as client, pytest.raises(Unreachable, match="nobody listens"):
        next(client.pull("m"))


def test_a_daemon_that_ends_during_a_pull(operator: InMemory, tmp_path: Path) -> None:
    address = tmp_path / "run" / "m.sock"
    with ControlClient(address) as client:
        with Server(address, [control_door(operator)]):
            steps = client.pull("m")
            next(steps)
        with pytest.raises(Unreachable, match="there is no socket"):
            list(steps)
    assert operator.ended.wait(10)


def _ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_probes_are_told_how_it_is() -> None:
    alive, reason = [True], [""]
    with Health("127.0.0.1", 0, lambda: alive[0], lambda: reason[0]) as health:
        assert _ask(health.port, "/healthz") == (200, "ok\n")
        assert _ask(health.port, "/readyz?verbose") == (200, "ok\n")
        reason[0] = "the store is failing"
        assert _ask(health.port, "/readyz") == (503, "the store is failing\n")
        assert _ask(health.port, "/healthz") == (200, "ok\n")
        alive[0] = False
        assert _ask(health.port, "/healthz")[0] == 503
        assert _ask(health.port, "/")[0] == 404
        assert "health" in [thread.name for thread in threading.enumerate()]
    assert "health" not in [thread.name for thread in threading.enumerate()]


def test_a_probe_that_fails_is_an_answer_too() -> None:
    with Health("127.0.0.1", 0, lambda: bool(1 / 0), str) as health:
        assert _ask(health.port, "/healthz")[0] == 500
        assert _ask(health.port, "/readyz")[0] == 200


def test_silent_askers_do_not_keep_others_from_an_answer() -> None:
    with Health("127.0.0.1", 0, lambda: True, str) as health:
        silent = [socket.create_connection(("127.0.0.1", health.port)) for _ in range(5)]
        assert _ask(health.port, "/healthz") == (200, "ok\n")
        for asker in silent:
            asker.close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(Refused, match=f"127.0.0.1:{port}: Address already in use"),
            Health("127.0.0.1", port, bool, str),
        ):
            pass
