from __future__ import annotations

import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelvold.errors import InvalidInput, Refused
from modelvold.rpc.gen import snapshots_pb2
from modelvold.rpc.server import Server

from tests.lab.services import Snapshots
from tests.lab.snapshots import SnapshotsLab, rpc_threads


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "run/modelvold.sock"


def _health(address: Path, service: str = "") -> int:
    with grpc.insecure_channel(f"unix:{address}") as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def test_the_socket_is_roots_alone_and_gone_afterwards(address: Path) -> None:
    with Server(address, []):
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o711
        assert [path.name for path in address.parent.iterdir()] == [address.name]
        assert _health(address) == health_pb2.HealthCheckResponse.SERVING
    assert list(address.parent.iterdir()) == []
    assert rpc_threads() == []


def test_health_names_the_services(tmp_path: Path) -> None:
    with SnapshotsLab(tmp_path) as lab:
        service = "containerd.services.snapshots.v1.Snapshots"
        assert _health(lab.address, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            _health(lab.address, "unknown")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_dead_socket_is_replaced(address: Path) -> None:
    address.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address))
    with Server(address, []):
        assert _health(address) == health_pb2.HealthCheckResponse.SERVING


def test_a_living_socket_is_not(address: Path) -> None:
    with Server(address, []):
        inode = address.stat().st_ino
        with pytest.raises(Refused, match="another daemon answers"), Server(address, []):
            pass
        assert address.stat().st_ino == inode
        assert _health(address) == health_pb2.HealthCheckResponse.SERVING
    assert rpc_threads() == []


def test_a_busy_socket_is_alive(address: Path) -> None:
    address.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(address))
        busy.listen(0)
        waiting.connect(str(address))
        with pytest.raises(Refused, match="another daemon answers"), Server(address, []):
            pass


def test_what_is_no_socket_is_left_alone(address: Path) -> None:
    address.parent.mkdir()
    address.write_text("precious")
    with pytest.raises(Refused, match="no socket"), Server(address, []):
        pass
    assert address.read_text() == "precious"


def test_a_folder_that_others_write_is_refused(address: Path) -> None:
    address.parent.mkdir()
    address.parent.chmod(0o777)
    with pytest.raises(Refused, match="others than root"), Server(address, []):
        pass
    assert list(address.parent.iterdir()) == []


def test_a_path_too_long(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        Server(tmp_path / ("x" * 100), [])


def test_somebody_elses_socket_survives_our_end(address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with Server(address, []):
            address.unlink()
            other.bind(str(address))
        assert address.exists()


def test_large_messages_pass(tmp_path: Path) -> None:
    with SnapshotsLab(tmp_path) as lab:
        labels = {f"label-{number}": "x" * 4000 for number in range(3000)}
        lab.client.prepare("a", "", labels)
        with grpc.insecure_channel(
            f"unix:{lab.address}", options=[("grpc.max_receive_message_length", 16 << 20)]
        ) as channel:
            ask = channel.unary_unary(
                "/containerd.services.snapshots.v1.Snapshots/Stat",
                request_serializer=snapshots_pb2.StatSnapshotRequest.SerializeToString,
                response_deserializer=snapshots_pb2.StatSnapshotResponse.FromString,
            )
            assert dict(ask(snapshots_pb2.StatSnapshotRequest(key="a")).info.labels) == labels


def test_the_socket_goes_first_and_calls_under_way_may_end(tmp_path: Path) -> None:
    lab = SnapshotsLab(tmp_path)
    arrived = threading.Event()

    def opening() -> None:
        arrived.set()
        while lab.address.exists():
            time.sleep(0.001)

    pull = lab.shelf.give("registry.example/a/model")
    lab.shelf.opening = opening
    with ThreadPoolExecutor(1) as caller, ExitStack() as beside:
        with lab:
            client = beside.enter_context(Snapshots(lab.address))
            call = caller.submit(client.prepare, "extract", "", pull.labels)
            assert arrived.wait(60)
        error = call.exception(60)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
