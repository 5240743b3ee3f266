"""Where a registry sent us for a blob is asked at once for the next range of it, for as long as that holds, and for nothing
else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from modelvold import errors
from modelvold.layer.extent import BlobOffset
from modelvold.oci.document import Descriptor
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials

from tests.fakes.authority import Authority
from tests.fakes.registry import Auth, FakeRegistry, generated
from tests.registry.asking import drain, open_range, read_range, repository
from tests.registry.conftest import WriteHosts

SIZE = 100_000
CONTENT = generated(SIZE, seed=11)
DIGEST = CONTENT.digest()
USER = BasicCredentials("user", "secret")


@pytest.fixture
def storage() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        made.put_blob(CONTENT, DIGEST)
        yield made


@pytest.fixture
def registry(storage: FakeRegistry) -> Iterator[FakeRegistry]:
    """It sends every range to `storage`, and has the blob itself too."""
    with FakeRegistry() as made:
        made.put_blob(CONTENT, DIGEST)
        made.behaviour.only, made.behaviour.redirect_to = ".*/blobs/.*", storage.origin
        yield made


def read(client: Client, registry: FakeRegistry, start: int, timeout: float = 5) -> None:
    """1000 bytes from `start`, which are right."""
    assert read_range(client, registry.address, DIGEST, start, start + 1000, timeout) == CONTENT.read(start, 1000)


def asked(*registries: FakeRegistry) -> tuple[int, ...]:
    return tuple(len(one.requests) for one in registries)


def signatures(storage: FakeRegistry) -> list[str]:
    return [request.query["X-Signature"] for request in storage.requests]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_later_ranges_go_straight_to_storage(
    client: Client, registry: FakeRegistry, storage: FakeRegistry, status: int
) -> None:
    registry.behaviour.redirect_status = status
    for start in (0, 5000, 90_000, 5000):
        read(client, registry, start)
    assert asked(registry, storage) == (1, 4)
    assert len(set(signatures(storage))) == 1
    assert [request.range for request in storage.requests][1:3] == ["bytes=5000-5999", "bytes=90000-90999"]
    assert len({request.connection for request in storage.requests}) == 1
    with open_range(client, registry.address, DIGEST, 0, 10) as body:
        assert (body.host, drain(body)) == (registry.address, CONTENT.read(0, 10))


def test_nothing_secret_goes_along(client: Client, write_hosts: WriteHosts, storage: FakeRegistry) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        write_hosts(registry.address, f'server = "{registry.origin}"\n[header]\nx-gate = "hush"\n')
        registry.behaviour.only, registry.behaviour.redirect_to = ".*/blobs/.*", storage.origin
        client.remember(repository(registry.address), USER)
        for start in (0, 1000, 2000):
            read(client, registry, start)
        assert [request.status for request in registry.requests] == [401, 200, 307]
        for request in storage.requests:
            assert not {"authorization", "x-gate"} & request.headers.keys()
            assert request.headers["modelvold-hop"] == "1"


def test_only_ranges_of_the_same_blob(client: Client, registry: FakeRegistry, storage: FakeRegistry) -> None:
    other = storage.put_blob(b"0123456789")
    place = repository(registry.address)
    read(client, registry, 0)
    assert read_range(client, registry.address, other, 0, 4) == b"0123"
    assert asked(registry, storage) == (2, 2)
    for _ in range(2):
        assert client.has_blob(place, DIGEST)
        assert client.read_blob(place, Descriptor("", other, 10), 10) == b"0123456789"
    assert asked(registry, storage) == (6, 6)
    elsewhere = repository(registry.address, "models/other")
    assert client.has_blob(elsewhere, DIGEST)
    with client.open_range(elsewhere, DIGEST, *_range(), timeout=5) as body:
        assert drain(body) == CONTENT.read(0, 10)
    assert asked(registry, storage) == (8, 8)
    with client.open_range(elsewhere, DIGEST, *_range(), timeout=5) as body:
        assert drain(body) == CONTENT.read(0, 10)
    assert asked(registry, storage) == (8, 9)


def test_only_of_the_same_entry_of_hosts_toml(
    client: Client, write_hosts: WriteHosts, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    for gate in ("one", "two", "two"):
        write_hosts(registry.address, f'server = "{registry.origin}"\n[header]\nx-gate = "{gate}"\n')
        read(client, registry, 0)
    assert [request.headers["x-gate"] for request in registry.requests] == ["one", "two"]


def test_only_as_whom_it_was_given_to(client: Client, registry: FakeRegistry, storage: FakeRegistry) -> None:
    """What the node was sent to is not what a pod would be: whoever brings something new is asked as."""
    read(client, registry, 0)
    for credentials in (USER, USER, BasicCredentials("other", "secret")):
        client.remember(repository(registry.address), credentials)
        read(client, registry, 1000)
    assert asked(registry, storage) == (3, 4)


def test_not_within_the_host(client: Client, storage: FakeRegistry) -> None:
    """There secrets go along, so it is asked as ever."""
    storage.behaviour.status = {"/v2/models/tiny/.*": 307}
    storage.behaviour.headers = {"Location": f"/v2/moved/blobs/{DIGEST}"}
    for start in (0, 1000):
        read(client, storage, start)
    assert len(storage.requests) == 4


@pytest.mark.parametrize(
    ("query", "cache_control"),
    [
        (f"Expires={int(time.time()) - 1}", ""),
        ("X-Amz-Date=20200101T000000Z&X-Amz-Expires=900", ""),
        ("", "no-store"),
        ("", "private, no-cache"),
        (f"Expires={int(time.time()) + 3600}", "no-store"),
    ],
    ids=["ended", "ended by a date", "not to be stored", "private", "holds, but not to be stored"],
)
def test_what_does_not_hold_is_not_kept(
    client: Client, registry: FakeRegistry, storage: FakeRegistry, query: str, cache_control: str
) -> None:
    registry.behaviour.redirect_query = query
    registry.behaviour.redirect_headers = {"Cache-Control": cache_control} if cache_control else {}
    for start in (0, 1000, 2000):
        read(client, registry, start)
    assert asked(registry, storage) == (3, 3)


def test_until_it_ends(client: Client, registry: FakeRegistry, storage: FakeRegistry) -> None:
    registry.behaviour.redirect_headers = {"Cache-Control": "max-age=1"}
    read(client, registry, 0)
    time.sleep(1.1)
    read(client, registry, 1000)
    assert asked(registry, storage) == (2, 2)


def test_a_signature_that_ends_while_ranges_go_on(
    client: Client, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    """Sooner than thought: nobody who reads learns of it, and each new signature serves for as long as it is good."""
    storage.behaviour.signature_uses = 3
    for n in range(9):
        read(client, registry, n * 1000)
    assert asked(registry, storage) == (3, 11)
    assert [request.status for request in storage.requests] == [206, 206, 206, 403, 206, 206, 206, 403, 206, 206, 206]
    assert len(set(signatures(storage))) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_target_that_leads_there_no_longer(
    client: Client, registry: FakeRegistry, storage: FakeRegistry, status: int
) -> None:
    read(client, registry, 0)
    storage.behaviour.status = {".*": status}
    registry.behaviour.redirect_to = ""
    for start in (1000, 2000):
        read(client, registry, start)
    assert [request.status for request in storage.requests] == [206, status]
    assert [request.status for request in registry.requests] == [307, 206, 206]


def test_the_registry_is_asked_once_more_and_not_again(
    client: Client, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    read(client, registry, 0)
    storage.behaviour.status = {".*": 403}
    with pytest.raises(
        errors.Unreachable, match=f"{registry.address} redirects to {storage.address}, which answered 403"
    ):
        open_range(client, registry.address, DIGEST, 0, 10)
    assert asked(registry, storage) == (2, 3)
    registry.behaviour.status = {".*": 404}
    with pytest.raises(errors.NotFound, match=f"{registry.address} answered 404"):
        open_range(client, registry.address, DIGEST, 0, 10)
    assert asked(registry, storage) == (3, 3)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_storage_in_trouble_is_left_alone(
    client: Client, registry: FakeRegistry, storage: FakeRegistry, status: int
) -> None:
    """It said so itself: who asks for the range again, later, is led by the registry."""
    read(client, registry, 0)
    storage.behaviour.status, storage.behaviour.headers = {".*": status}, {"Retry-After": "7"}
    with pytest.raises(errors.Unreachable, match=rf"{storage.address} \(redirected from .* asks to wait 7 s") as caught:
        open_range(client, registry.address, DIGEST, 0, 10)
    assert caught.value.wait == 7
    assert asked(registry, storage) == (1, 2)
    registry.behaviour.redirect_to = ""
    read(client, registry, 0)


def test_a_storage_that_is_gone(client: Client, registry: FakeRegistry) -> None:
    with FakeRegistry() as gone:
        gone.put_blob(CONTENT, DIGEST)
        registry.behaviour.redirect_to, kept = gone.origin, registry.behaviour.redirect_to
        read(client, registry, 0)
    registry.behaviour.redirect_to = kept
    read(client, registry, 1000)
    assert [request.status for request in registry.requests] == [307, 307]


def test_a_storage_that_says_nothing_leaves_time_for_the_registry(
    client: Client, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    read(client, registry, 0)
    storage.behaviour.hang, registry.behaviour.redirect_to = True, ""
    read(client, registry, 1000, timeout=2)
    assert asked(registry, storage) == (2, 2)


@pytest.mark.parametrize("ill", ["wrong_range", "ignore_range"])
def test_an_answer_that_is_not_to_be_believed(
    client: Client, registry: FakeRegistry, storage: FakeRegistry, ill: str
) -> None:
    read(client, registry, 0)
    setattr(storage.behaviour, ill, 512)
    storage.blobs[str(DIGEST)] = generated(SIZE // 2)
    registry.behaviour.redirect_to = ""
    with open_range(client, registry.address, DIGEST, 1000, 2000, size=SIZE) as body:
        assert drain(body) == CONTENT.read(1000, 1000)
    assert asked(registry, storage) == (2, 2)


def test_a_body_that_breaks_off(client: Client, registry: FakeRegistry, storage: FakeRegistry) -> None:
    """The registry may know a better place."""
    read(client, registry, 0)
    storage.behaviour.cut_after = 10
    with open_range(client, registry.address, DIGEST, 0, 1000) as body, pytest.raises(errors.Unreachable):
        drain(body)
    assert asked(registry, storage) == (1, 2)
    storage.behaviour.cut_after = None
    read(client, registry, 0)
    assert asked(registry, storage) == (2, 3)


def test_a_mirrors_storage_is_the_mirrors(
    client: Client, write_hosts: WriteHosts, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    """Whoever avoids the mirror avoids where it led to."""
    with FakeRegistry() as server:
        server.put_blob(CONTENT, DIGEST)
        write_hosts("registry.example", f'server = "{server.origin}"\n[host."{registry.origin}"]\n')
        for avoid in (frozenset[str](), frozenset[str](), frozenset({registry.address})):
            with open_range(client, "registry.example", DIGEST, 0, 10, avoid=avoid) as body:
                drain(body)
        assert asked(registry, storage, server) == (1, 2, 1)


def test_no_way_down_from_tls(client: Client, write_hosts: WriteHosts, authority: Authority) -> None:
    """Neither at first nor later; and the registry's own CA is believed there, as ever."""
    with (
        FakeRegistry(tls=authority.issue("registry")) as registry,
        FakeRegistry(tls=authority.issue("storage")) as storage,
        FakeRegistry() as plain,
    ):
        write_hosts(registry.address, f'server = "{registry.origin}"\nca = "{authority.ca}"\n')
        for one in (registry, storage, plain):
            one.put_blob(CONTENT, DIGEST)
        registry.behaviour.redirect_to = storage.origin
        read(client, registry, 0)
        read(client, registry, 1000)
        storage.behaviour.redirect_to, registry.behaviour.redirect_to = plain.origin, ""
        read(client, registry, 2000)
        assert asked(registry, storage, plain) == (2, 3, 0)


def test_many_threads_and_a_signature_that_keeps_ending(
    client: Client, registry: FakeRegistry, storage: FakeRegistry
) -> None:
    storage.behaviour.signature_uses = 5
    troubles: list[BaseException] = []

    def work(first: int) -> None:
        for n in range(20):
            try:
                read(client, registry, (first * 7919 + n * 104_729) % (SIZE - 1000))
            except errors.Unreachable:  # the new signature was worn out by others before it could be used
                pass
            except BaseException as error:
                troubles.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []


def _range() -> tuple[BlobOffset, BlobOffset]:
    return BlobOffset(0), BlobOffset(10)
