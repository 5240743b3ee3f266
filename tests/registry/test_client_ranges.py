"""Ranges of blobs: exactly the bytes asked for, as they come, or an error with how many came."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from modelvold import errors
from modelvold.layer.extent import BlobOffset
from modelvold.oci.digest import Digest
from modelvold.registry.client import Client

from tests.fakes.registry import Auth, FakeRegistry, generated
from tests.registry.asking import NOWHERE, drain, open_range, read_range, repository
from tests.registry.conftest import MakeClient, WriteHosts

SIZE = 300_000
CONTENT = generated(SIZE, seed=7)


@pytest.mark.parametrize(("start", "end"), [(0, SIZE), (0, 1), (SIZE - 1, SIZE), (4095, 131_073), (100_000, 100_001)])
@pytest.mark.parametrize("framing", ["", "chunked", "until_close"])
def test_exactly_the_bytes_asked_for(client: Client, start: int, end: int, framing: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        if framing:
            setattr(registry.behaviour, framing, True)
        assert read_range(client, registry.address, digest, start, end) == CONTENT.read(start, end - start)
        (asked,) = registry.requests
        assert (asked.range, asked.status, asked.sent) == (f"bytes={start}-{end - 1}", 206, end - start)


def test_connections_serve_many_ranges(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        for framing in (False, True):
            registry.behaviour.chunked = framing
            for start in range(0, SIZE, 100_000):
                wanted = CONTENT.read(start, 100_000)
                assert read_range(client, registry.address, digest, start, start + 100_000) == wanted
        assert len({request.connection for request in registry.requests}) == 1


def test_a_reader_that_stops_exactly_at_the_end_keeps_the_connection(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(b"0123456789")
        for _ in range(2):
            with open_range(client, registry.address, digest, 2, 6) as body:
                view = memoryview(bytearray(4))
                got = 0
                while got < 4:
                    got += body.readinto(view[got:])
                assert (bytes(view), body.got, body.length) == (b"2345", 4, 4)
        assert len({request.connection for request in registry.requests}) == 1


def test_a_body_left_early_ends_its_connection(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        with open_range(client, registry.address, digest, 0, SIZE) as body:
            body.readinto(memoryview(bytearray(10)))
        assert read_range(client, registry.address, digest, 0, 10) == CONTENT.read(0, 10)
        assert len({request.connection for request in registry.requests}) == 2


def test_bytes_are_given_as_they_come(client: Client) -> None:
    """A reader of the range's beginning does not wait for its end."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 1000
        with open_range(client, registry.address, digest, 0, SIZE) as body:
            view, got = memoryview(bytearray(SIZE)), 0
            while got < 1000:
                got += body.readinto(view[got:])
            assert bytes(view[:1000]) == CONTENT.read(0, 1000)
            registry.behaviour.resume.set()
            assert drain(body) == CONTENT.read(1000, SIZE - 1000)


@pytest.mark.parametrize("framing", ["", "chunked", "until_close"])
@pytest.mark.parametrize("how", ["cut_after", "reset_after"])
def test_a_body_cut_short(client: Client, framing: str, how: str) -> None:
    """Passing trouble, whatever says where it should have ended: it may be asked for again from there."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        setattr(registry.behaviour, how, 1234)
        if framing:
            setattr(registry.behaviour, framing, True)
        with open_range(client, registry.address, digest, 10, SIZE) as body:
            with pytest.raises(errors.Unreachable, match=rf"sent \d+ of {SIZE - 10} bytes") as caught:
                drain(body)
            assert body.got == 1234 or how == "reset_after"  # which takes back what was not read yet
        assert registry.address in caught.value.message


def test_a_body_that_falls_silent(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 5000
        silent = pytest.raises(errors.Unreachable, match=r"sent 5000 of 300000 bytes: silent for 0\.3 s")
        with open_range(client, registry.address, digest, 0, SIZE, timeout=0.3) as body, silent:
            drain(body)


@pytest.mark.parametrize("framing", ["", "chunked"])
def test_a_body_that_drips(client: Client, framing: str) -> None:
    """A byte now and then breaks the silence, and is of no use."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.rate, registry.behaviour.piece = 20, 1
        if framing:
            setattr(registry.behaviour, framing, True)
        slow = pytest.raises(errors.Unreachable, match=r"sent \d+ of 300000 bytes: too slow, \d+ bytes in 1 s")
        with open_range(client, registry.address, digest, 0, SIZE, timeout=1) as body, slow:
            drain(body)
        assert 1 < registry.requests[0].sent < 100


def test_a_body_that_drips_after_a_good_start(client: Client) -> None:
    """Pace is looked at again and again, not over all."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 200_000
        with open_range(client, registry.address, digest, 0, SIZE, timeout=2) as body:
            view, got = memoryview(bytearray(SIZE)), 0
            while got < 200_000:
                got += body.readinto(view)
            registry.behaviour.rate, registry.behaviour.piece = 20, 1
            registry.behaviour.resume.set()
            with pytest.raises(errors.Unreachable, match="too slow"):
                drain(body)


def test_time_that_the_reader_takes_is_not_the_registrys(client: Client) -> None:
    """A disk that is slow to take the bytes makes no transfer too slow."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        with open_range(client, registry.address, digest, 0, SIZE, timeout=0.2) as body:
            view, got = memoryview(bytearray(SIZE)), bytearray()
            while count := body.readinto(view[:100]) if len(got) < 400 else body.readinto(view):
                got += view[:count]
                time.sleep(0.3 if len(got) <= 400 else 0)
        assert got == CONTENT.read(0, SIZE)


def test_headers_that_drip(client: Client) -> None:
    """Nor does it help to send an answer's beginning a byte at a time."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.drip_headers = 0.05
        began = time.monotonic()
        with pytest.raises(errors.Unreachable, match="no answer in time"):
            open_range(client, registry.address, digest, 0, 10, timeout=0.4)
        assert time.monotonic() - began < 5


def test_a_slow_body_is_not_a_silent_one(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.rate = 1_000_000
        assert read_range(client, registry.address, digest, 0, SIZE, timeout=1) == CONTENT.read(0, SIZE)


def test_a_body_may_take_longer_than_any_silence(client: Client) -> None:
    """What counts is that it goes on."""
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.rate, registry.behaviour.piece = 120_000, 6_000
        began = time.monotonic()
        assert read_range(client, registry.address, digest, 0, SIZE, timeout=1) == CONTENT.read(0, SIZE)
        assert time.monotonic() - began > 2


def test_more_than_the_range_is_declared(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.extra = b"more"
        with pytest.raises(errors.Malformed, match="declares 104 bytes for a range of 100"):
            open_range(client, registry.address, digest, 0, 100)


@pytest.mark.parametrize("framing", ["chunked", "until_close"])
def test_more_than_the_range_comes(client: Client, framing: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.extra = b"more"
        setattr(registry.behaviour, framing, True)
        longer = pytest.raises(errors.Malformed, match="sent 100 of 100 bytes: the body goes on")
        with open_range(client, registry.address, digest, 0, 100) as body, longer:
            drain(body)


def test_bytes_behind_the_declared_end_never_reach_the_next_answer(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.extra, registry.behaviour.extra_undeclared = b"HTTP/1.1 200 OK\r\n\r\n", True
        for start in (0, 100, 200):
            assert read_range(client, registry.address, digest, start, start + 100) == CONTENT.read(start, 100)
            time.sleep(0.1)  # what the registry sends once more arrives a moment behind the answer
        assert len({request.connection for request in registry.requests}) == 3


def test_another_range_than_asked(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.wrong_range = 512
        with pytest.raises(errors.Malformed, match="answers with bytes 512-612 instead"):
            open_range(client, registry.address, digest, 0, 100)


@pytest.mark.parametrize("said", ["", "bytes", "bytes 0-99", "bytes 99-0/300000", "bytes 0-98/300000", "lines 0-99/1"])
def test_a_content_range_that_says_nothing_right(client: Client, said: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.headers = {"Content-Range": said}
        with pytest.raises(errors.Malformed, match=registry.address):
            open_range(client, registry.address, digest, 0, 100)


def test_a_size_that_lies(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(b"short")
        for start, end in ((0, 6), (4, 100), (5, 6), (1000, 2000)):
            with pytest.raises(errors.Malformed, match="size that lies"):
                open_range(client, registry.address, digest, start, end)
        for size, has in ((4, "has 5"), (6, "has only 5")):
            with pytest.raises(errors.Malformed, match=f"{has} bytes of it: the manifest names a size of {size} bytes"):
                open_range(client, registry.address, digest, 0, 3, size=size)
        open_range(client, registry.address, digest, 0, 3, size=5).close()
        registry.behaviour.ignore_range = True
        with pytest.raises(errors.Malformed, match="a size that lies"):
            open_range(client, registry.address, digest, 0, 6)
        with pytest.raises(errors.Malformed, match="a size of 4 bytes that lies"):
            open_range(client, registry.address, digest, 0, 3, size=4)


@pytest.mark.parametrize("framing", ["", "chunked", "until_close"])
def test_a_registry_that_ignores_ranges(client: Client, framing: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.ignore_range = True
        if framing:
            setattr(registry.behaviour, framing, True)
        for start, end in ((0, SIZE), (0, 10), (123_456, 123_500), (SIZE - 1, SIZE)):
            assert read_range(client, registry.address, digest, start, end) == CONTENT.read(start, end - start)


@pytest.mark.parametrize("framing", ["chunked", "until_close"])
def test_a_whole_blob_shorter_than_the_range(client: Client, framing: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(b"short")
        registry.behaviour.ignore_range = True
        setattr(registry.behaviour, framing, True)
        for start in (3, 7):
            with open_range(client, registry.address, digest, start, 9) as body, pytest.raises(errors.Unreachable):
                drain(body)


def test_ignored_ranges_far_into_a_blob_are_refused(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(generated(1 << 40), Digest.of(b"huge"))
        registry.behaviour.ignore_range = True
        with pytest.raises(errors.Malformed, match=f"{registry.address} ignores ranges"):
            open_range(client, registry.address, digest, 1 << 39, (1 << 39) + 10)


@pytest.mark.parametrize("framing", ["", "chunked", "until_close"])
def test_whoever_takes_the_whole_is_given_what_comes_ahead(client: Client, framing: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        if framing:
            setattr(registry.behaviour, framing, True)
        for ignores, ahead in ((False, 0), (True, 100_000)):
            registry.behaviour.ignore_range = ignores
            with open_range(client, registry.address, digest, 100_000, 200_000, size=SIZE, takes_whole=True) as body:
                assert (body.ahead, body.got, body.length) == (ahead, 0, ahead + 100_000)
                assert drain(body) == CONTENT.read(100_000 - ahead, ahead + 100_000)
                assert (body.ahead, body.got, body.length) == (ahead, ahead + 100_000, ahead + 100_000)
        for start, end in ((0, 10), (0, SIZE), (SIZE - 1, SIZE)):
            with open_range(client, registry.address, digest, start, end, takes_whole=True) as body:
                assert (body.ahead, body.length) == (start, end)
                assert drain(body) == CONTENT.read(0, end)


def test_nothing_is_too_far_for_whoever_takes_the_whole(client: Client) -> None:
    """And the bytes ahead come at once, not when the range begins."""
    huge = generated(1 << 40)
    with FakeRegistry() as registry:
        digest = registry.put_blob(huge, Digest.of(b"huge"))
        registry.behaviour.ignore_range = True
        with open_range(client, registry.address, digest, 1 << 39, (1 << 39) + 10, takes_whole=True) as body:
            assert (body.ahead, body.length) == (1 << 39, (1 << 39) + 10)
            view = memoryview(bytearray(1 << 20))
            got = body.readinto(view)
            assert bytes(view[:got]) == huge.read(0, got)
            assert body.got == got
        with pytest.raises(errors.Malformed, match="a size that lies"):
            open_range(client, registry.address, digest, 1 << 39, 1 << 41, takes_whole=True)


def test_what_comes_ahead_and_is_cut_is_counted(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.ignore_range, registry.behaviour.cut_after = True, 5000
        cut = pytest.raises(errors.Unreachable, match="sent 5000 of 200000 bytes")
        with open_range(client, registry.address, digest, 100_000, 200_000, takes_whole=True) as body, cut:
            drain(body)
        assert (body.got, body.ahead) == (5000, 100_000)


@pytest.mark.parametrize(
    "header", [{"Content-Encoding": "gzip"}, {"Transfer-Encoding": "gzip, chunked"}, {"Transfer-Encoding": "gzip"}]
)
def test_an_encoded_range_is_no_range(client: Client, header: dict[str, str]) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.headers = header
        with pytest.raises(errors.Malformed, match="encodes"):
            open_range(client, registry.address, digest, 0, 100)


@pytest.mark.parametrize("held", [0, 70_000])
def test_abort_wakes_a_waiting_reader(client: Client, held: int) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 1 + held
        with open_range(client, registry.address, digest, 0, SIZE, timeout=20) as body:
            came, caught = threading.Event(), list[errors.Failure]()

            def read() -> None:
                view = memoryview(bytearray(SIZE))
                try:
                    while body.readinto(view):
                        if body.got == 1 + held:
                            came.set()
                except errors.Failure as failure:
                    caught.append(failure)

            thread = threading.Thread(target=read)
            thread.start()
            assert came.wait(10)
            body.abort()
            thread.join(10)
            assert not thread.is_alive()
            assert type(caught[0]) is errors.Unreachable
            assert "given up" in caught[0].message


def test_abort_before_reading_and_after_the_end(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        with open_range(client, registry.address, digest, 0, SIZE) as body:
            body.abort()
            with pytest.raises(errors.Unreachable, match="given up"):
                body.readinto(memoryview(bytearray(10)))
        with open_range(client, registry.address, digest, 0, 10) as done:
            drain(done)
        done.abort()
        done.abort()
        assert read_range(client, registry.address, digest, 0, 10) == CONTENT.read(0, 10)
        assert len({request.connection for request in registry.requests}) == 2


def test_closing_the_client_wakes_readers(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 10
        with open_range(client, registry.address, digest, 0, SIZE, timeout=20) as body:
            body.readinto(memoryview(bytearray(10)))
            closer = threading.Thread(target=client.close)
            closer.start()
            with pytest.raises(errors.Unreachable, match="sent 10 of"):
                drain(body)
            closer.join()


@pytest.mark.parametrize("where", ["connecting", "handshake", "answer", "token"])
def test_closing_the_client_wakes_whoever_waits_for_an_answer(
    make_client: MakeClient, write_hosts: WriteHosts, where: str
) -> None:
    """Before a byte of it has come, wherever it hangs; and nothing more can be asked."""
    client = make_client(connect_timeout=60, read_timeout=60)
    with ExitStack() as stack:
        registry = stack.enter_context(FakeRegistry(auth=Auth(bearer=True, anonymous=True)))
        registry.behaviour.hang, registry.behaviour.only = True, "/token" if where == "token" else ".*"
        address = registry.address
        if where in {"connecting", "handshake"}:
            deaf = stack.enter_context(_deaf(full=where == "connecting"))
            address = f"127.0.0.1:{deaf}"
            scheme = "https" if where == "handshake" else "http"
            write_hosts(address, f'server = "{scheme}://{address}"\nskip_verify = {str(scheme == "https").lower()}\n')
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                open_range(client, address, Digest.of(b""), 0, 10, timeout=60)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)  # so that it hangs; that it may not yet is no reason to fail
        client.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [type(error) for error in caught] == [errors.Unreachable]
        with pytest.raises(errors.Unreachable, match="the client is closed"):
            open_range(client, address, Digest.of(b""), 0, 10)


@contextmanager
def _deaf(*, full: bool) -> Iterator[int]:
    """A port where connections are accepted by nobody: with a `full` queue not even the kernel answers them."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0), backlog=0 if full else 8) as listener:
        for _ in range(8 if full else 0):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_registry_that_accepts_and_never_answers(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        registry.behaviour.hang = True
        with pytest.raises(errors.Unreachable, match="no answer in time"):
            open_range(client, registry.address, digest, 0, 10, timeout=0.2)


def test_refusals_of_ranges(client: Client) -> None:
    with FakeRegistry() as registry:
        with pytest.raises(errors.NotFound, match=r"@sha256:[0-9a-f]{64} bytes 0-10: .* answered 404 BLOB_UNKNOWN"):
            open_range(client, registry.address, Digest.of(b"none"), 0, 10)
        registry.behaviour.status = {".*": 503}
        with pytest.raises(errors.Unreachable, match="answered 503"):
            open_range(client, registry.address, Digest.of(b"none"), 0, 10)
    with pytest.raises(errors.Unreachable, match="Connection refused"):
        open_range(client, NOWHERE, Digest.of(b"none"), 0, 10)


def test_an_empty_or_backward_range_is_the_callers_mistake(client: Client) -> None:
    for start, end in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="no range"):
            client.open_range(repository(NOWHERE), Digest.of(b""), BlobOffset(start), BlobOffset(end), timeout=1)


def test_many_threads_at_once(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(CONTENT)
        wrong = []

        def read(seed: int) -> None:
            for n in range(10):
                start = (seed * 7919 + n * 104_729) % (SIZE - 5000)
                if read_range(client, registry.address, digest, start, start + 5000) != CONTENT.read(start, 5000):
                    wrong.append(start)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(registry.requests) == 80
        assert len({request.connection for request in registry.requests}) <= 8
