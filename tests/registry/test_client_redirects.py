"""Redirects: followed a few times, with nothing secret on them, and never down from TLS."""

from __future__ import annotations

import logging

import pytest
from modelvold import errors
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials

from tests.fakes.authority import Authority
from tests.fakes.registry import Auth, FakeRegistry
from tests.registry.asking import REPOSITORY, open_range, read_range, repository
from tests.registry.conftest import MakeClient, WriteHosts


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_bytes_come_from_where_the_registry_says(client: Client, status: int) -> None:
    with FakeRegistry() as storage, FakeRegistry() as registry:
        digest = storage.put_blob(b"0123456789")
        registry.behaviour.redirect_to, registry.behaviour.redirect_status = storage.origin, status
        place = repository(registry.address)
        assert read_range(client, registry.address, digest, 2, 6) == b"2345"
        assert client.read_blob(place, Descriptor("", digest, 10), 10) == b"0123456789"
        assert client.has_blob(place, digest)
        assert storage.requests[0].range == "bytes=2-5"
        assert registry.bytes_sent() == 2 * len(b"<a>elsewhere</a>")
        assert [len({r.connection for r in asked.requests}) for asked in (registry, storage)] == [1, 1]


@pytest.mark.parametrize("bearer", [False, True])
def test_nothing_secret_goes_to_another_host(client: Client, write_hosts: WriteHosts, bearer: bool) -> None:
    with FakeRegistry() as storage, FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        write_hosts(registry.address, f'server = "{registry.origin}"\n[header]\nx-gate = "hush"\n')
        digest = storage.put_blob(b"0123456789")
        registry.behaviour.only, registry.behaviour.redirect_to = ".*/blobs/.*", storage.origin
        client.remember(repository(registry.address), BasicCredentials("user", "secret"))
        assert read_range(client, registry.address, digest, 2, 6) == b"2345"
        assert registry.requests[-1].auth == ("Bearer" if bearer else "Basic")
        assert {request.headers.get("x-gate") for request in registry.requests} == {"hush"}
        (asked,) = storage.requests
        assert asked.auth == ""
        assert "x-gate" not in asked.headers
        assert asked.headers["modelvold-hop"] == "1"


def test_nothing_secret_even_if_the_way_leads_back(client: Client) -> None:
    with FakeRegistry() as storage, FakeRegistry(auth=Auth()) as registry:
        digest = registry.put_blob(b"0123456789")
        registry.behaviour.redirect_to = storage.origin
        storage.behaviour.redirect_to = registry.origin
        client.remember(repository(registry.address), BasicCredentials("user", "secret"))
        # Back at the registry nobody is known any more.
        with pytest.raises(errors.Unreachable, match="which answered 401"):
            open_range(client, registry.address, digest, 0, 4)
        returned = [request for request in registry.requests if "X-Signature" in request.query]
        assert [request.auth for request in returned] == [""]


def test_a_redirect_within_the_host_keeps_authorization(client: Client) -> None:
    with FakeRegistry(auth=Auth()) as registry:
        digest = registry.put_blob(b"0123456789")
        registry.behaviour.status = {f"/v2/{REPOSITORY}/.*": 307}
        registry.behaviour.headers = {"Location": f"/v2/moved/blobs/{digest}"}
        client.remember(repository(registry.address), BasicCredentials("user", "secret"))
        assert read_range(client, registry.address, digest, 2, 6) == b"2345"
        assert [request.auth for request in registry.requests][-1] == "Basic"


def test_a_circle_ends_after_five(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.behaviour.redirect_to = registry.origin
        with pytest.raises(errors.Malformed, match="redirects more than 5 times"):
            open_range(client, registry.address, Digest.of(b""), 0, 1)
        assert len(registry.requests) == 6


@pytest.mark.parametrize("target", ["", "ftp://127.0.0.1/x", "http://[::1", "http://a b/", "http://127.0.0.1:99999/"])
def test_a_redirect_to_nowhere(client: Client, target: str) -> None:
    with FakeRegistry() as registry:
        registry.behaviour.status, registry.behaviour.headers = {".*": 307}, {"Location": target}
        with pytest.raises(errors.Malformed, match=f"{registry.address} redirects"):
            open_range(client, registry.address, Digest.of(b""), 0, 1)


def test_never_from_https_to_http(make_client: MakeClient, write_hosts: WriteHosts, authority: Authority) -> None:
    with FakeRegistry() as storage, FakeRegistry(tls=authority.issue("registry")) as registry:
        write_hosts(registry.address, f'server = "{registry.origin}"\nca = "{authority.ca}"\n')
        digest = storage.put_blob(b"0123456789")
        registry.behaviour.redirect_to = storage.origin
        with pytest.raises(errors.Malformed, match="from https to plain http"):
            open_range(make_client(), registry.address, digest, 0, 4)
        assert storage.requests == []


def test_from_http_to_https(client: Client, write_hosts: WriteHosts, authority: Authority) -> None:
    """The registry's CA is believed for its storage too, as containerd does."""
    with FakeRegistry(tls=authority.issue("storage")) as storage, FakeRegistry() as registry:
        write_hosts(registry.address, f'[host."{registry.origin}"]\nca = "{authority.ca}"\n')
        digest = storage.put_blob(b"0123456789")
        registry.behaviour.redirect_to = storage.origin
        assert read_range(client, registry.address, digest, 2, 6) == b"2345"


def test_a_signature_that_has_ended_is_asked_for_anew(client: Client) -> None:
    """The registry signs anew for every request: one made again goes well."""
    with FakeRegistry() as storage, FakeRegistry() as registry:
        digest = storage.put_blob(b"0123456789")
        registry.behaviour.redirect_to = storage.origin
        for status in (400, 403):
            storage.behaviour.status = {".*": status}
            with pytest.raises(errors.Unreachable, match=f"which answered {status}"):
                open_range(client, registry.address, digest, 2, 6)
            storage.behaviour.status = {}
            assert read_range(client, registry.address, digest, 2, 6) == b"2345"
        assert len({request.query["X-Signature"] for request in storage.requests}) == 4


@pytest.mark.parametrize(
    ("status", "noun"),
    [(403, "Unreachable"), (400, "Unreachable"), (401, "Unreachable"), (404, "NotFound"), (429, "Unreachable")],
)
def test_refused_where_we_were_sent(client: Client, status: int, noun: str, caplog: pytest.LogCaptureFixture) -> None:
    """A signature that ended is the registry's trouble, nobody's credentials; and the signature is told to nobody."""
    caplog.set_level(logging.DEBUG)
    with FakeRegistry() as storage, FakeRegistry() as registry:
        registry.behaviour.redirect_to = storage.origin
        storage.behaviour.status = {".*": status}
        with pytest.raises(errors.Failure) as caught:
            open_range(client, registry.address, Digest.of(b""), 0, 1)
        assert type(caught.value) is getattr(errors, noun)
        assert storage.address in caught.value.message
        assert registry.address in caught.value.message
    assert "hush" not in str(caught.value) + caplog.text
    assert "X-Signature" not in str(caught.value) + caplog.text
