"""The façade's sockets, threads and time."""

from __future__ import annotations

import logging
import socket
import threading

import pytest
from modelvold.errors import Exhausted, Failing, InUse, NotYet, Unreachable, Unsupported
from modelvold.facade import Facade
from modelvold.facade.patience import Patience
from modelvold.facade.remembered import Remembered

from tests.facade.conftest import Bench
from tests.facade.upstream import HOST, MemoryGiven, MemoryUpstream, Reply, ask
from tests.oci.models import document, layer

NAME = f"{HOST}/team/model"
MODEL = document(layer("config.json"))


def open_after(first: threading.Thread, gate: threading.Event) -> None:
    first.join()
    gate.set()


def test_other_methods_are_refused_in_the_registrys_language(bench: Bench) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH", "OPTIONS"):
        reply = bench.manifest("v1", method)
        assert (reply.status, reply.error["code"]) == (405, "UNSUPPORTED")
    assert bench.upstream.calls == []


def test_what_is_no_http_is_refused(bench: Bench) -> None:
    host, _, port = bench.facade.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1 and more\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_one_connection_carries_one_request(bench: Bench) -> None:
    assert ask(bench.facade.address, "/v2/").headers["connection"] == "close"


def test_a_caller_that_leaves_harms_nobody(bench: Bench) -> None:
    host, _, port = bench.facade.address.partition(":")
    for sent in (b"", b"GET", b"GET /v2/ HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
    assert ask(bench.facade.address, "/v2/").status == 200


def test_a_failure_of_the_record_is_no_image(bench: Bench) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.given.trouble = Failing("the store fails")
    assert bench.manifest("v1", "HEAD").status == 503
    bench.given.trouble = None
    assert bench.manifest("v1", "HEAD").status == 200


def test_an_error_of_our_own_is_answered_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.upstream.put(f"{NAME}:v1", MODEL)
    bench.given.trouble = ZeroDivisionError("inside")
    reply = bench.manifest("v1")
    assert (reply.status, reply.error["code"]) == (500, "UNKNOWN")
    assert "inside" not in reply.error["message"]
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)


def test_a_registry_that_never_answers_is_given_up() -> None:
    upstream = MemoryUpstream()
    upstream.put(f"{NAME}:v1", MODEL)
    upstream.gate.clear()
    with Facade(("127.0.0.1", 0), upstream, MemoryGiven(), "amd64", patience=0.05) as facade:
        reply = ask(facade.address, f"/v2/team/model/manifests/v1?ns={HOST}")
        assert (reply.status, reply.error["code"]) == (503, "UNAVAILABLE")
        assert HOST in reply.error["message"]
        upstream.gate.set()


def test_a_registry_that_never_answers_delays_no_other_and_no_end() -> None:
    upstream = MemoryUpstream()
    upstream.gate.clear()
    replies: list[Reply] = []
    with Facade(("127.0.0.1", 0), upstream, MemoryGiven(), "amd64", patience=600) as facade:
        target = f"http://{facade.address}/v2/team/model/manifests/v1?ns={HOST}"
        waiting = threading.Thread(target=lambda: replies.append(ask(facade.address, target)))
        waiting.start()
        while not upstream.calls:
            threading.Event().wait(0.001)
        assert ask(facade.address, "/v2/team/model/manifests/v1?ns=elsewhere.example").status == 403
        # The registry answers only once whoever waits has been told of the end.
        threading.Thread(target=open_after, args=(waiting, upstream.gate)).start()
    waiting.join()
    assert [reply.status for reply in replies] == [503]
    assert "stopping" in replies[0].error["message"]


def test_connections_are_bounded() -> None:
    with Facade(("127.0.0.1", 0), MemoryUpstream(), MemoryGiven(), "amd64", most_connections=1) as facade:
        host, _, port = facade.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(b"GET /v2/ HTTP/1.1\r\n")
            assert ask(facade.address, "/v2/").status == 503
            idle.sendall(b"\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
            while idle.recv(4096):
                pass


def test_an_address_that_is_taken_is_named(bench: Bench) -> None:
    host, _, port = bench.facade.address.partition(":")
    with (
        pytest.raises(InUse, match=bench.facade.address),
        Facade((host, int(port)), bench.upstream, bench.given, "amd64"),
    ):
        pass
    with (
        pytest.raises(Unsupported, match=r"192\.0\.2\.1"),
        Facade(("192.0.2.1", 0), bench.upstream, bench.given, "amd64"),
    ):
        pass


def test_its_repr_shows_whether_it_lives() -> None:
    facade = Facade(("127.0.0.1", 0), MemoryUpstream(), MemoryGiven(), "amd64")
    assert repr(facade) == "<Facade closed>"
    with facade:
        assert repr(facade) == f"<Facade {facade.address}>"


def test_patience_is_bounded_for_each_host() -> None:
    gate = threading.Event()
    with Patience(0.01, most_each=2) as patience:
        for _ in range(2):
            with pytest.raises(Unreachable, match="slow"):
                patience.ask("slow", gate.wait)
        with pytest.raises(Exhausted, match="slow"):
            patience.ask("slow", gate.wait)
        assert repr(patience) == "<Patience 0.01s {'slow': 2}>"
        gate.set()
    assert repr(patience) == "<Patience 0.01s {}>"
    with pytest.raises(NotYet):
        patience.ask("slow", threading.Event().wait)


def test_patience_gives_back_results_and_errors() -> None:
    with Patience(60) as patience:
        assert patience.ask("host", lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            patience.ask("host", lambda: 1 // 0)
        assert repr(patience) == "<Patience 60s {}>"


def test_what_is_remembered_is_bounded_by_use() -> None:
    memory: Remembered[str, int] = Remembered(2)
    memory.put("a", 1)
    memory.put("b", 2)
    assert memory.get("a") == 1
    memory.put("c", 3)
    assert [memory.get(key) for key in "abc"] == [1, None, 3]
    assert repr(memory) == "<Remembered 2 of 2>"
