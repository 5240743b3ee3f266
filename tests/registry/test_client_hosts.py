"""Which hosts are asked, in which order, and how: hosts.toml over real sockets."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from modelvold import errors
from modelvold.registry import standing
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials

from tests.fakes.authority import Authority
from tests.fakes.registry import Auth, Behaviour, FakeRegistry
from tests.registry.asking import NOWHERE, REPOSITORY, drain, open_range, read_range, reference, repository
from tests.registry.conftest import MakeClient, WriteHosts

NAME = "registry.example"


def hosts(*mirrors: FakeRegistry | str, server: FakeRegistry | str) -> str:
    origins = [mirror if isinstance(mirror, str) else mirror.origin for mirror in mirrors]
    last = server if isinstance(server, str) else server.origin
    return f'server = "{last}"\n' + "".join(f'[host."{origin}"]\n' for origin in origins)


def test_mirrors_in_order_then_the_server(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as first, FakeRegistry() as second, FakeRegistry() as server:
        write_hosts(NAME, hosts(first, second, server=server))
        digest = server.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = second.put_blob(b"0123456789")
        assert client.resolve(reference(NAME)).digest == digest
        assert read_range(client, NAME, blob, 2, 6) == b"2345"
        assert [len(registry.requests) for registry in (first, second, server)] == [2, 2, 1]
        asked = {registry.requests[0].query["ns"] for registry in (first, second, server)}
        assert asked == {NAME}


@pytest.mark.parametrize("trouble", ["refuses connections", "404", "500", "401", "403", "429", "lies", "hangs", "html"])
def test_any_trouble_leads_to_the_next_host(make_client: MakeClient, write_hosts: WriteHosts, trouble: str) -> None:
    client = make_client(read_timeout=0.3)
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(NOWHERE if trouble.startswith("refuses") else mirror, server=server))
        digest = server.add_model(REPOSITORY, "v1", {"a": b"1"})
        if trouble.isdecimal():
            mirror.behaviour.status = {".*": int(trouble)}
        elif trouble == "lies":
            mirror.add_model(REPOSITORY, "v1", {"a": b"2"})
            mirror.manifests[REPOSITORY, str(digest)] = mirror.manifests[REPOSITORY, "v1"]
        elif trouble == "html":
            mirror.put_manifest(REPOSITORY, "v1", b"<html>")
            mirror.manifests[REPOSITORY, str(digest)] = (b"<html>", "text/html")
        mirror.behaviour.hang = trouble == "hangs"
        assert client.resolve(reference(NAME).at(digest)).digest == digest


def test_a_hanging_mirror_leaves_time_for_the_server(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        digest = server.add_model(REPOSITORY, "v1", {"a": b"1"})
        mirror.behaviour.hang = True
        assert client.head(reference(NAME), timeout=1).digest == digest
        # Having failed just now, it is asked last.
        assert client.head(reference(NAME), timeout=1).digest == digest
        assert len(mirror.requests) == 1


def test_a_mirror_that_breaks_off_is_asked_last(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        mirror.put_blob(b"0123456789")
        mirror.behaviour.cut_after = 3
        with pytest.raises(errors.Unreachable, match=f"{mirror.address} sent 3 of 8 bytes"):
            read_range(client, NAME, blob, 0, 8)
        assert read_range(client, NAME, blob, 0, 8) == b"01234567"
        assert (len(mirror.requests), len(server.requests)) == (1, 1)


def test_a_mirror_that_failed_is_gone_back_to(
    client: Client, write_hosts: WriteHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked last for half a minute, mended or not, and then as hosts.toml says; sooner if all others fail."""
    now = [1000.0]
    monkeypatch.setattr(standing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        mirror.put_blob(b"0123456789")
        order: list[tuple[int, int]] = []

        def read(passed: float) -> None:
            now[0] = 1000.0 + passed
            before = len(mirror.requests), len(server.requests)
            assert read_range(client, NAME, blob, 2, 6) == b"2345"
            order.append((len(mirror.requests) - before[0], len(server.requests) - before[1]))

        read(0)
        mirror.behaviour.status = {".*": 503}
        read(1)
        mirror.behaviour = Behaviour()
        for passed in (2, 30, 31.1, 32):
            read(passed)
        assert order == [(1, 0), (1, 1), (0, 1), (0, 1), (1, 0), (1, 0)]
        mirror.behaviour.status = {".*": 503}
        read(33)
        mirror.behaviour, server.behaviour = Behaviour(), Behaviour(status={".*": 503})
        for passed in (34, 35):
            read(passed)
        assert order[6:] == [(1, 1), (1, 1), (1, 0)]


@pytest.mark.parametrize(
    ("mirror_says", "server_says", "noun"),
    [(404, 401, "Unauthorized"), (500, 404, "NotFound"), (404, 503, "Unreachable"), (401, 404, "NotFound")],
)
def test_the_servers_word_counts(
    client: Client, write_hosts: WriteHosts, mirror_says: int, server_says: int, noun: str
) -> None:
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        mirror.behaviour.status, server.behaviour.status = {".*": mirror_says}, {".*": server_says}
        for _ in range(2):
            with pytest.raises(errors.Failure, match=server.address) as caught:
                client.head(reference(NAME))
            assert type(caught.value) is getattr(errors, noun)


def test_hosts_to_avoid(client: Client, write_hosts: WriteHosts) -> None:
    """They are named as bodies name who was asked; where all are avoided nobody is asked."""
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        mirror.put_blob(b"0123456789")
        both = client.hosts(repository(NAME))
        assert both == {mirror.address, server.address}
        for avoided, asked in ((frozenset[str](), mirror), (frozenset({mirror.address}), server)):
            with open_range(client, NAME, blob, 2, 6, avoid=avoided) as body:
                assert (body.host, drain(body)) == (asked.address, b"2345")
        nobody = pytest.raises(
            errors.Mismatch, match=f"wrong bytes came from {mirror.address}, {server.address}, and no"
        )
        with nobody:
            open_range(client, NAME, blob, 2, 6, avoid=both)
        assert [len(registry.requests) for registry in (mirror, server)] == [1, 1]


def test_a_host_to_avoid_is_the_one_asked_and_not_its_storage(client: Client, write_hosts: WriteHosts) -> None:
    """Storage is a name of the moment; hosts.toml names the mirror."""
    with FakeRegistry() as storage, FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        storage.put_blob(b"0123456789")
        mirror.behaviour.redirect_to = storage.origin
        with open_range(client, NAME, blob, 2, 6) as body:
            assert (body.host, drain(body)) == (mirror.address, b"2345")
        with open_range(client, NAME, blob, 2, 6, avoid=frozenset({mirror.address})) as body:
            assert (body.host, drain(body)) == (server.address, b"2345")
        assert len(storage.requests) == 1


@pytest.mark.parametrize(
    ("mirror_says", "server_says", "noun"),
    [(503, 404, "Unreachable"), (404, 503, "Unreachable"), (401, 404, "NotFound"), (503, 401, "Unreachable")],
)
def test_of_a_range_what_may_pass_is_told_first(
    client: Client, write_hosts: WriteHosts, mirror_says: int, server_says: int, noun: str
) -> None:
    """Who asks again for as long as somebody waits must not give up because of the host that lacks it."""
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        mirror.behaviour.status, server.behaviour.status = {".*": mirror_says}, {".*": server_says}
        with pytest.raises(errors.Failure) as caught:
            open_range(client, NAME, server.put_blob(b"x"), 0, 1)
        assert type(caught.value) is getattr(errors, noun)


def test_a_host_that_was_asked_too_often_is_not_asked_for_ranges(client: Client) -> None:
    """It is told again what was said, without a request, until the time is over; documents are asked for as before."""
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = registry.put_blob(b"0123456789")
        registry.behaviour.status, registry.behaviour.headers = {".*": 429}, {"Retry-After": "1"}
        for _ in range(3):
            with pytest.raises(errors.Unreachable, match=r"answered 429.*asks to wait 1 s") as caught:
                open_range(client, registry.address, blob, 0, 1)
            assert 0 < caught.value.wait <= 1
        assert len(registry.requests) == 1
        with pytest.raises(errors.Unreachable, match="answered 429"):
            client.resolve(reference(registry.address))
        registry.behaviour = Behaviour()
        assert client.resolve(reference(registry.address)).digest == digest
        time.sleep(1)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"


def test_what_is_said_of_documents_holds_back_no_range(client: Client) -> None:
    """Docker Hub counts manifests, and gives blobs without end."""
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = registry.put_blob(b"0123456789")
        registry.behaviour = Behaviour(only=".*/manifests/.*", status={".*": 429}, headers={"Retry-After": "3600"})
        with pytest.raises(errors.Unreachable, match="asks to wait 3600 s"):
            client.resolve(reference(registry.address))
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"


def test_one_that_is_not_there_for_a_while_is_asked_for_other_blobs(client: Client) -> None:
    """Its wait is that of who asked; it may be about one blob."""
    with FakeRegistry() as registry:
        bad, good = registry.put_blob(b"0123456789"), registry.put_blob(b"abcdefghij")
        registry.behaviour = Behaviour(only=f".*{bad}", status={".*": 503}, headers={"Retry-After": "3600"})
        with pytest.raises(errors.Unreachable, match=r"answered 503.*asks to wait 3600 s") as caught:
            open_range(client, registry.address, bad, 0, 1)
        assert caught.value.wait == 30
        assert read_range(client, registry.address, good, 2, 6) == b"cdef"


def test_a_mirror_is_asked_while_the_server_is_left_alone(client: Client, write_hosts: WriteHosts) -> None:
    """And the other way round: a limit is one host's."""
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        mirror.put_blob(b"0123456789")
        mirror.behaviour.status, mirror.behaviour.headers = {".*": 429}, {"Retry-After": "3600"}
        for _ in range(3):
            assert read_range(client, NAME, blob, 2, 6) == b"2345"
        assert (len(mirror.requests), len(server.requests)) == (1, 3)


def test_a_host_left_for_each_range_is_told_of_once(
    client: Client, write_hosts: WriteHosts, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror without the model, asked before the server for every range of it; then without a right to it."""
    caplog.set_level(logging.INFO)
    with FakeRegistry() as mirror, FakeRegistry() as server:
        write_hosts(NAME, hosts(mirror, server=server))
        blob = server.put_blob(b"0123456789")
        for _ in range(20):
            assert read_range(client, NAME, blob, 2, 6) == b"2345"
        assert caplog.text.count("leave host=") == 1
        mirror.behaviour.status = {".*": 403}
        for _ in range(20):
            assert read_range(client, NAME, blob, 2, 6) == b"2345"
        assert caplog.text.count("leave host=") == 2


def test_capabilities(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as puller, FakeRegistry() as resolver:
        mirror = f'[host."{puller.origin}"]\ncapabilities = ["pull"]\n'
        write_hosts(NAME, f'server = "{resolver.origin}"\ncapabilities = ["resolve"]\n{mirror}')
        digest = resolver.add_model(REPOSITORY, "v1", {"a": b"1"})
        puller.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = puller.put_blob(b"0123456789")
        assert client.head(reference(NAME)).digest == digest
        assert client.resolve(reference(NAME).at(digest)).digest == digest
        assert read_range(client, NAME, blob, 0, 4) == b"0123"
        assert [request.path.split("/")[-2] for request in puller.requests] == ["manifests", "blobs"]
        assert [request.path.split("/")[-1] for request in resolver.requests] == ["v1"]
        write_hosts(NAME, f'server = "{resolver.origin}"\ncapabilities = ["resolve"]\n')
        with pytest.raises(errors.Unreachable, match=f"no host of {NAME} may pull"):
            open_range(client, NAME, blob, 0, 4)


@pytest.mark.parametrize(
    ("path", "override", "asked"),
    [
        ("", False, "/v2/"),
        ("/", False, "/v2/"),
        ("/proxy", False, "/proxy/v2/"),
        ("/v2/proxy", False, "/v2/proxy/v2/"),
        ("/proxy/v2", False, "/proxy/v2/"),
        ("/v2/proxy", True, "/v2/proxy/"),
        ("", True, "/"),
    ],
)
def test_paths(client: Client, write_hosts: WriteHosts, path: str, override: bool, asked: str) -> None:
    with FakeRegistry() as server:
        write_hosts(NAME, f'server = "{server.origin}{path}"\noverride_path = {str(override).lower()}\n')
        server.behaviour.status = {".*": 404}
        with pytest.raises(errors.NotFound):
            client.head(reference(NAME))
        assert server.requests[0].path == f"{asked}{REPOSITORY}/manifests/v1"


def test_a_changed_file_is_read_again(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as old, FakeRegistry() as new:
        for registry in (old, new):
            registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        file = write_hosts(NAME, hosts(server=old))
        client.head(reference(NAME))
        write_hosts(NAME, hosts(server=new))
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        client.head(reference(NAME))
        assert (len(old.requests), len(new.requests)) == (1, 1)
        write_hosts(NAME, "server = ")
        with pytest.raises(errors.InvalidInput, match=re.escape(str(file))):
            client.head(reference(NAME))


def test_a_malformed_file_asks_nobody(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        file = write_hosts(registry.address, 'capabilities = ["pull", "fly"]\n')
        with pytest.raises(errors.InvalidInput, match=f"{re.escape(str(file))}.*'fly'"):
            client.resolve(reference(registry.address))
        assert registry.requests == []


def test_our_own_listener_is_never_asked(make_client: MakeClient, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as facade, FakeRegistry() as registry:
        client = make_client(facade=facade.address)
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        port = facade.address.rpartition(":")[2]
        ways = (
            hosts(facade, server=registry),
            hosts(f"http://localhost:{port}", server=registry),
            hosts(server=facade),
        )
        for text in ways:
            write_hosts(registry.address, text)
            assert client.names_facade(registry.address)
            assert client.resolve(reference(registry.address)).digest == digest
        assert facade.requests == []


def test_names_facade(make_client: MakeClient, write_hosts: WriteHosts, tmp_path: Path) -> None:
    client = make_client(facade="127.0.0.1:7878")
    write_hosts("named.example", '[host."http://127.0.0.1:7878"]\ncapabilities = ["pull", "resolve"]\n')
    write_hosts("other.example", '[host."http://127.0.0.1:7879"]\n')
    assert client.names_facade("named.example")
    assert not client.names_facade("other.example")
    assert not client.names_facade("127.0.0.1:7878")
    assert not make_client().names_facade("named.example")
    for name in ("", "..", "a/b", "../certs.d/named.example", "a b", "x:99999", "x\n"):
        with pytest.raises(errors.InvalidInput):
            client.names_facade(name)
    write_hosts("_default", '[host."http://localhost:7878"]\n')
    assert client.names_facade("anything.example")
    write_hosts("broken.example", "[host")
    with pytest.raises(errors.InvalidInput, match=r"broken\.example"):
        client.names_facade("broken.example")


def test_a_mirror_gets_nothing_meant_for_the_registry(
    make_client: MakeClient, write_hosts: WriteHosts, tmp_path: Path
) -> None:
    with FakeRegistry(auth=Auth()) as mirror, FakeRegistry(auth=Auth()) as server:
        config = tmp_path / "config.json"
        config.write_text('{"auths": {"registry.example": {"username": "user", "password": "secret"}}}')
        write_hosts(NAME, hosts(mirror, server=server))
        digest = server.add_model(REPOSITORY, "v1", {"a": b"1"})
        mirror.add_model(REPOSITORY, "v1", {"a": b"1"})
        client = make_client(docker_config=config)
        assert client.resolve(reference(NAME)).digest == digest
        assert [request.auth for request in mirror.requests] == [""]
        assert [request.auth for request in server.requests] == ["", "Basic"]
        # What a pod brought goes wherever containerd would have sent it.
        client.remember(repository(NAME), BasicCredentials("user", "secret"))
        client.resolve(reference(NAME), remembered=True)
        assert mirror.requests[-1].status == 200


def test_tls_with_a_private_authority(client: Client, write_hosts: WriteHosts, authority: Authority) -> None:
    with FakeRegistry(tls=authority.issue("private"), auth=Auth(bearer=True)) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        content = bytes(range(256)) * 4096
        blob = registry.put_blob(content)
        user = BasicCredentials("user", "secret")
        write_hosts(registry.address, f'server = "{registry.origin}"\n')
        with pytest.raises(errors.Unreachable, match="TLS: the certificate is not trusted"):
            client.resolve(reference(registry.address), user)
        assert registry.requests == []
        relative = os.path.relpath(authority.ca, write_hosts(registry.address, "").parent)
        for line in (f'ca = "{authority.ca}"', f'ca = ["{relative}"]', "skip_verify = true"):
            write_hosts(registry.address, f'server = "{registry.origin}"\n{line}\n')
            assert client.resolve(reference(registry.address), user).digest == digest
        client.remember(repository(registry.address), user)
        assert read_range(client, registry.address, blob, 100, 1_000_000) == content[100:1_000_000]
        registry.behaviour.stall_after = 20_000
        with open_range(client, registry.address, blob, 0, 1_000_000, timeout=20) as body:
            view = memoryview(bytearray(1 << 20))
            while body.got < 20_000:
                body.readinto(view)
            body.abort()
            with pytest.raises(errors.Unreachable, match="given up"):
                body.readinto(view)


def test_tls_connections_are_kept(client: Client, write_hosts: WriteHosts, authority: Authority) -> None:
    with FakeRegistry(tls=authority.issue("kept")) as registry:
        blob = registry.put_blob(b"0123456789")
        write_hosts(registry.address, f'server = "{registry.origin}"\nca = "{authority.ca}"\n')
        for _ in range(4):
            assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        assert len({request.connection for request in registry.requests}) == 1


def test_a_certificate_for_another_name(client: Client, write_hosts: WriteHosts, authority: Authority) -> None:
    with FakeRegistry(tls=authority.issue("stranger", "stranger.example")) as registry:
        write_hosts(registry.address, f'server = "{registry.origin}"\nca = "{authority.ca}"\n')
        with pytest.raises(errors.Unreachable, match="TLS: the certificate is not trusted: IP address mismatch"):
            client.head(reference(registry.address))


def test_client_certificates(client: Client, write_hosts: WriteHosts, authority: Authority, tmp_path: Path) -> None:
    context = authority.issue("strict").server_context(clients_of=authority.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # so that a missing certificate fails in the handshake
    ours = authority.issue("node", "node.example")
    both = tmp_path / "both.pem"
    both.write_bytes(ours.certificate.read_bytes() + ours.key.read_bytes())
    with FakeRegistry(tls=context) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        start = f'server = "{registry.origin}"\nca = "{authority.ca}"\n'
        write_hosts(registry.address, start)
        with pytest.raises(errors.Unreachable):
            client.head(reference(registry.address))
        pair = f'["{ours.certificate}", "{ours.key}"]'
        for named in (f"[{pair}]", f'"{both}"', f'["{both}"]'):
            write_hosts(registry.address, f"{start}client = {named}\n")
            assert client.head(reference(registry.address)).digest == digest
        blob = registry.put_blob(b"0123456789")
        asked = len(registry.requests)
        for _ in range(3):
            assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        assert len({request.connection for request in registry.requests[asked:]}) == 1


def test_dockers_layout_of_certificates(client: Client, authority: Authority, tmp_path: Path) -> None:
    with FakeRegistry(tls=authority.issue("docker")) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        folder = tmp_path / "certs.d" / registry.address
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
        assert client.head(reference(registry.address)).digest == digest


@pytest.mark.parametrize("key", ["ca", "client"])
def test_certificate_files_that_are_none(client: Client, write_hosts: WriteHosts, tmp_path: Path, key: str) -> None:
    missing, nonsense = tmp_path / "missing.pem", tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for file in (missing, nonsense):
        write_hosts(NAME, f'server = "https://{NOWHERE}"\n{key} = "{file}"\n')
        with pytest.raises(errors.InvalidInput, match=re.escape(str(file))):
            client.head(reference(NAME))


def test_plain_http_after_a_host_that_does_not_speak_tls(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        write_hosts(registry.address, f'server = "{registry.origin}"\nskip_verify = true\n')
        assert client.resolve(reference(registry.address)).digest == digest


def test_plain_http_never_after_a_certificate_that_fails(
    client: Client, write_hosts: WriteHosts, authority: Authority
) -> None:
    with FakeRegistry(tls=authority.issue("unknown")) as registry:
        other = authority.issue("other").certificate
        write_hosts(registry.address, f'server = "http://{registry.address}"\nca = "{other}"\n')
        with pytest.raises(errors.Unreachable, match="not trusted"):
            client.resolve(reference(registry.address))


def test_plain_http_never_because_another_host_spoke_it(
    client: Client, write_hosts: WriteHosts, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with FakeRegistry() as plain, FakeRegistry(tls=authority.issue("second")) as secure, FakeRegistry() as server:
        mirrors = "".join(f'[host."http://{one.address}"]\nskip_verify = true\n' for one in (plain, secure))
        write_hosts(NAME, f'server = "{server.origin}"\n{mirrors}')
        digest = server.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = server.put_blob(b"0123456789")
        assert client.resolve(reference(NAME)).digest == digest
        # Nor because of where the host sent us.
        secure.behaviour.redirect_to = f"https://{plain.address}"
        assert read_range(client, NAME, blob, 0, 4) == b"0123"
    assert f"leave host=http://{plain.address} " in caplog.text
    assert f"leave host=https://{secure.address} " in caplog.text
    assert "TLS: it answers without TLS" in caplog.text
    assert f"leave host=http://{secure.address} " not in caplog.text


def test_tls_is_not_plain_http(client: Client, authority: Authority) -> None:
    """A loopback registry without hosts.toml is asked in plain HTTP; one with TLS then does not answer."""
    with FakeRegistry(tls=authority.issue("surprise")) as registry, pytest.raises(errors.Unreachable):
        client.resolve(reference(registry.address))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.8.7"])
def test_loopback_is_plain_http(client: Client, host: str) -> None:
    with FakeRegistry(host="0.0.0.0") as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        port = registry.address.rpartition(":")[2]
        assert client.resolve(reference(f"{host}:{port}")).digest == digest
