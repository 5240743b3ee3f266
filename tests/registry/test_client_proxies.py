"""Through a proxy: what it is asked, what it learns, and what is said when it refuses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from modelvold import errors
from modelvold.oci.digest import Digest
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials
from modelvold.registry.proxies import Proxies

from tests.fakes.authority import Authority
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import Auth, FakeRegistry, generated
from tests.registry.asking import NOWHERE, REPOSITORY, drain, open_range, read_range, reference, repository
from tests.registry.conftest import MakeClient, WriteHosts

NAME = "registry.test"
USER = BasicCredentials("user", "secret")
CONTENT = generated(300_000, seed=5)


def ways(proxy: FakeProxy, user: str = "", **environ: str) -> Proxies:
    return Proxies.of({"HTTP_PROXY": proxy.url(user), "HTTPS_PROXY": proxy.url(user), **environ})


@contextmanager
def secure(
    authority: Authority, write_hosts: WriteHosts, auth: Auth | None = None, name: str = NAME
) -> Iterator[FakeRegistry]:
    """A registry that shows a certificate for `name`, which hosts.toml believes, and for `auth.test`."""
    with FakeRegistry(tls=authority.issue(name, name, "auth.test"), auth=auth) as registry:
        write_hosts(name, f'server = "https://{name}"\nca = "{authority.ca}"\n')
        yield registry


def test_a_tunnel_to_a_host_with_tls(make_client: MakeClient, write_hosts: WriteHosts, authority: Authority) -> None:
    """One for many requests; the host's certificate is looked at; neither learns what the other is told."""
    with (
        secure(authority, write_hosts, Auth()) as registry,
        FakeProxy({f"{NAME}:443": registry.address}, user="me:hush") as proxy,
    ):
        client = make_client(proxies=ways(proxy, "me:hush"))
        client.remember(repository(NAME), USER)
        digest = registry.put_blob(CONTENT)
        for start in (0, 100_000, 200_000):
            assert read_range(client, NAME, digest, start, start + 100_000) == CONTENT.read(start, 100_000)
        assert proxy.tunnels() == [f"{NAME}:443"]
        (asked,) = proxy.asked
        assert set(asked.headers) == {"host", "user-agent", "proxy-authorization"}
        assert [request.status for request in registry.requests] == [401, 206, 206, 206]
        for request in registry.requests:
            assert request.path == f"/v2/{REPOSITORY}/blobs/{digest}"
            assert request.headers["host"] == NAME
            assert "proxy-authorization" not in request.headers


def test_another_host_at_the_tunnels_end(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority
) -> None:
    with (
        FakeRegistry(tls=authority.issue("impostor", "impostor.test")) as impostor,
        FakeProxy({f"{NAME}:443": impostor.address}) as proxy,
    ):
        write_hosts(NAME, f'server = "https://{NAME}"\nca = "{authority.ca}"\n')
        with pytest.raises(errors.Unreachable, match="TLS: the certificate is not trusted: Hostname mismatch"):
            make_client(proxies=ways(proxy)).head(reference(NAME))
        assert impostor.requests == []


def test_a_host_without_tls_is_asked_by_the_proxy(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    with (
        FakeRegistry(auth=Auth()) as registry,
        FakeProxy({f"{NAME}:80": registry.address, f"{NAME}:5000": registry.address}, user="me:hush") as proxy,
    ):
        client = make_client(proxies=ways(proxy, "me:hush"))
        digest = registry.put_blob(CONTENT)
        for name in (NAME, f"{NAME}:5000"):
            write_hosts(name, f'server = "http://{name}"\n[header]\nProxy-Authorization = "Basic bm8="\n')
            client.remember(repository(name), USER)
            for start in (0, 100_000):
                assert read_range(client, name, digest, start, start + 1000) == CONTENT.read(start, 1000)
            assert registry.requests[-1].headers["host"] == name
            assert proxy.forwarded()[-1] == f"http://{name}/v2/{REPOSITORY}/blobs/{digest}"
        assert proxy.tunnels() == []
        assert {asked.headers["proxy-authorization"] for asked in proxy.asked} == {proxy.expected}
        assert [request.status for request in registry.requests] == [401, 206, 206] * 2
        assert not any("proxy-authorization" in request.headers for request in registry.requests)
        assert len({asked.connection for asked in proxy.asked}) == 2


def test_a_proxy_with_tls_itself(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is believed as the system believes; the host within as hosts.toml says."""
    with (
        secure(authority, write_hosts) as registry,
        FakeProxy({f"{NAME}:443": registry.address}, user="me:hush", tls=authority.issue("proxy")) as proxy,
    ):
        digest = registry.put_blob(CONTENT)
        proxies = ways(proxy, "me:hush")
        with pytest.raises(errors.Unreachable, match=f"{NAME}: the proxy {proxy.url()}: TLS: the certificate is not"):
            open_range(make_client(proxies=proxies), NAME, digest, 0, 1)
        assert proxy.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        client = make_client(proxies=proxies)
        for start in (0, 100_000, 200_000):
            assert read_range(client, NAME, digest, start, start + 100_000) == CONTENT.read(start, 100_000)
        assert proxy.tunnels() == [f"{NAME}:443"]
        registry.behaviour.stall_after = 70_000
        silent = pytest.raises(errors.Unreachable, match="sent 70000 of 300000 bytes: silent")
        with open_range(client, NAME, digest, 0, 300_000, timeout=0.3) as body, silent:
            drain(body)
        registry.behaviour.stall_after, registry.behaviour.cut_after = None, 70_000
        with (
            open_range(client, NAME, digest, 0, 300_000) as body,
            pytest.raises(errors.Unreachable, match="sent 70000"),
        ):
            drain(body)


def test_a_host_without_tls_by_a_proxy_with_tls(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with (
        FakeRegistry() as registry,
        FakeProxy({f"{NAME}:80": registry.address}, user="me:hush", tls=authority.issue("proxy")) as proxy,
    ):
        write_hosts(NAME, f'server = "http://{NAME}"\n')
        client = make_client(proxies=ways(proxy, "me:hush"))
        digest = registry.put_blob(CONTENT)
        for _ in range(2):
            assert read_range(client, NAME, digest, 0, 200_000) == CONTENT.read(0, 200_000)
        assert len({asked.connection for asked in proxy.asked}) == 1


def test_token_servers_and_storage_go_by_their_own_scheme_and_host(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority
) -> None:
    """Storage on this machine, or exempt, is asked itself; each tunnel is its host's own."""
    auth = Auth(bearer=True, realm="https://auth.test")
    with (
        secure(authority, write_hosts, auth) as registry,
        FakeRegistry(tls=authority.issue("storage", "storage.test", "127.0.0.1")) as storage,
        FakeProxy({f"{name}:443": registry.address for name in (NAME, "auth.test")}) as proxy,
    ):
        proxy.names["storage.test:443"] = storage.address
        client = make_client(proxies=ways(proxy))
        client.remember(repository(NAME), USER)
        registry.behaviour.only, registry.behaviour.redirect_to = ".*/blobs/.*", "https://storage.test"
        near, far = (storage.put_blob(content) for content in (b"0123456789", b"abcdefghij"))
        assert read_range(client, NAME, far, 2, 6) == b"cdef"
        assert proxy.tunnels() == [f"{NAME}:443", "auth.test:443", "storage.test:443"]
        assert [request.headers["host"] for request in storage.requests] == ["storage.test"]
        assert [request.path for request in registry.requests if request.auth == "Basic"] == ["/token"]
        registry.behaviour.redirect_to = storage.origin
        assert read_range(client, NAME, near, 2, 6) == b"2345"
        assert proxy.tunnels() == [f"{NAME}:443", "auth.test:443", "storage.test:443"]
        assert [request.auth for request in storage.requests] == ["", ""]


def test_exempt_hosts_are_asked_themselves(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as registry, FakeProxy({}) as proxy:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client = make_client(proxies=ways(proxy, NO_PROXY=f"127.0.0.1,.invalid,{NAME}"))
        assert client.head(reference(registry.address)).digest == digest
        assert make_client(proxies=ways(proxy)).head(reference(registry.address)).digest == digest
        for name in ("a.invalid", NAME):
            with pytest.raises(errors.Unreachable, match="the name cannot be resolved"):
                client.head(reference(name))
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("status", "user", "said", "remedy", "wait"),
    [
        (407, "", "it wants a user name and password", "write the right ones into HTTPS_PROXY", 15),
        (407, "me:hush", "the user name and password are wrong", "write the right ones into HTTPS_PROXY", 15),
        (403, "", f"answered 403 for {NAME}:443", "ask whoever runs the proxy to allow it, or name .* in NO_PROXY", 15),
        (502, "", f"answered 502 for {NAME}:443", "it is asked again; if it lasts", 0),
        (504, "me:hush", f"answered 504 for {NAME}:443", "it is asked again; if it lasts", 0),
    ],
)
def test_a_proxy_that_refuses_a_tunnel(
    make_client: MakeClient, status: int, user: str, said: str, remedy: str, wait: float
) -> None:
    with FakeProxy({}) as proxy:
        proxy.status = status
        client = make_client(proxies=ways(proxy, user))
        with pytest.raises(errors.Unreachable, match=f"{NAME}: the proxy {proxy.url()} .*{said}") as caught:
            open_range(client, NAME, Digest.of(b""), 0, 1)
        assert caught.value.wait == wait
        with pytest.raises(errors.Unreachable, match=remedy) as again:
            client.head(reference(NAME))
        assert proxy.tunnels() == [f"{NAME}:443"] * 2
        assert "hush" not in str(caught.value) + str(again.value)


def test_a_proxy_that_refuses_to_ask(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    """Only of 407 it is clear whose word it is; of anything else both are named."""
    write_hosts(NAME, f'server = "http://{NAME}"\n')
    with FakeProxy({}, user="me:hush") as proxy:
        with pytest.raises(errors.Unreachable, match=f"the proxy {proxy.url()} answered 407: it wants.*HTTP_PROXY"):
            make_client(proxies=ways(proxy)).head(reference(NAME))
        client = make_client(proxies=ways(proxy, "me:hush"))
        with pytest.raises(errors.Unreachable, match=f"{NAME}:80 through the proxy {proxy.url()} answered 502"):
            client.head(reference(NAME))
        proxy.status = 403
        with pytest.raises(errors.Forbidden, match=f"{NAME}:80 through the proxy {proxy.url()} answered 403"):
            client.head(reference(NAME))


def test_a_proxy_that_forgets_and_a_password_that_it_refuses_in_the_middle(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority
) -> None:
    with secure(authority, write_hosts) as registry, FakeProxy({f"{NAME}:443": registry.address}) as proxy:
        client = make_client(proxies=ways(proxy))
        digest = registry.put_blob(CONTENT)
        for _ in range(2):
            assert read_range(client, NAME, digest, 0, 1000) == CONTENT.read(0, 1000)
            proxy.end_connections()
        assert len(proxy.tunnels()) == 2
        proxy.status = 407
        with pytest.raises(errors.Unreachable, match="answered 407"):
            open_range(client, NAME, digest, 0, 1000)


@pytest.mark.parametrize(
    ("nonsense", "extra", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"", "does not answer in HTTP"),
        (b"\x15\x03\x01", b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 4000, b"", "answers without an end"),
        (b"", b"HTTP/1.1 206 Partial\r\n\r\n", "does not answer in HTTP"),
    ],
)
def test_a_proxy_that_is_none(
    make_client: MakeClient,
    write_hosts: WriteHosts,
    authority: Authority,
    nonsense: bytes,
    extra: bytes,
    said: str,
) -> None:
    with secure(authority, write_hosts) as registry, FakeProxy({f"{NAME}:443": registry.address}) as proxy:
        proxy.nonsense, proxy.extra = nonsense, extra
        with pytest.raises(errors.Unreachable, match=f"the proxy {proxy.url()} {said}; check HTTPS_PROXY"):
            make_client(proxies=ways(proxy)).head(reference(NAME))
        assert registry.requests == []


def test_a_proxy_that_is_not_there(make_client: MakeClient) -> None:
    client = make_client(proxies=Proxies.of({"HTTPS_PROXY": f"http://me:hush@{NOWHERE}"}))
    refused = f"{NAME}: the proxy http://{NOWHERE}: Connection refused; check HTTPS_PROXY"
    with pytest.raises(errors.Unreachable, match=refused):
        client.head(reference(NAME))
    unknown = make_client(proxies=Proxies.of({"HTTPS_PROXY": "http://proxy.invalid:3128"}))
    with pytest.raises(errors.Unreachable, match=r"the proxy http://proxy\.invalid:3128: the name cannot be resolved"):
        unknown.head(reference(NAME))


def test_a_proxy_that_answers_without_tls(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    """Nor does its plain answer lead to the host in the clear."""
    with FakeRegistry() as registry, FakeProxy({f"{NAME}:5000": registry.address}) as proxy:
        write_hosts(f"{NAME}:5000", f'server = "http://{NAME}:5000"\nskip_verify = true\n')
        url = f"https://{proxy.address}"
        client = make_client(proxies=Proxies.of({"HTTPS_PROXY": url, "HTTP_PROXY": proxy.url()}))
        with pytest.raises(errors.Unreachable, match=f"the proxy {url}: TLS: it answers without TLS"):
            client.head(reference(f"{NAME}:5000"))
        assert registry.requests == []


def test_a_host_at_the_tunnels_end_that_does_not_speak_tls(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    """As without a proxy: it is asked in the clear where hosts.toml allows it, now by the other proxy."""
    with FakeRegistry() as registry, FakeProxy({f"{NAME}:5000": registry.address}) as proxy:
        write_hosts(f"{NAME}:5000", f'server = "http://{NAME}:5000"\nskip_verify = true\n')
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        assert make_client(proxies=ways(proxy)).head(reference(f"{NAME}:5000")).digest == digest
        assert [asked.method for asked in proxy.asked] == ["CONNECT", "HEAD"]


def test_a_proxy_that_never_answers(make_client: MakeClient) -> None:
    with FakeProxy({}) as proxy:
        proxy.hang = True
        client = make_client(proxies=ways(proxy), connect_timeout=0.3)
        with pytest.raises(errors.Unreachable, match=f"the proxy {proxy.url()}: no answer in time"):
            client.head(reference(NAME))


def test_closing_the_client_wakes_whoever_waits_for_a_proxy(make_client: MakeClient) -> None:
    with FakeProxy({}) as proxy:
        proxy.hang = True
        client = make_client(proxies=ways(proxy), connect_timeout=60, read_timeout=60)
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                client.head(reference(NAME))
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not proxy.asked:
            time.sleep(0.01)
        client.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [type(error) for error in caught] == [errors.Unreachable]


def test_abort_wakes_a_reader_behind_two_tlss(
    make_client: MakeClient, write_hosts: WriteHosts, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with (
        secure(authority, write_hosts) as registry,
        FakeProxy({f"{NAME}:443": registry.address}, tls=authority.issue("proxy")) as proxy,
    ):
        digest = registry.put_blob(CONTENT)
        registry.behaviour.stall_after = 1000
        with open_range(make_client(proxies=ways(proxy)), NAME, digest, 0, 300_000, timeout=60) as body:
            view = memoryview(bytearray(1 << 20))
            while body.got < 1000:
                body.readinto(view)
            thread = threading.Timer(0.2, body.abort)
            thread.start()
            with pytest.raises(errors.Unreachable, match="given up"):
                body.readinto(view)
            thread.join()


def test_the_proxys_password_stays_secret(
    make_client: MakeClient, write_hosts: WriteHosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeRegistry() as registry, FakeProxy({f"{NAME}:80": registry.address}, user="me:hush") as proxy:
        write_hosts(NAME, f'server = "http://{NAME}"\n[host."https://mirror.test"]\n')
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        proxies = ways(proxy, "me:hush")
        client: Client = make_client(proxies=proxies)
        assert client.resolve(reference(NAME)).digest == digest
        assert [asked.target for asked in proxy.asked if asked.method == "CONNECT"] == ["mirror.test:443"]
    assert f"the proxy {proxies.https}" in caplog.text
    assert "hush" not in caplog.text
    assert proxy.expected.removeprefix("Basic ") not in caplog.text
