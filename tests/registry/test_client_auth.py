"""Who we are to a registry: nobody, the node, or a pod; and that nobody else learns it."""

from __future__ import annotations

import base64
import json
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from modelvold import errors
from modelvold.oci.document import Descriptor
from modelvold.oci.reference import Repository
from modelvold.registry import tokens
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials

from tests.fakes.registry import Auth, Behaviour, FakeRegistry
from tests.registry.asking import REPOSITORY, open_range, read_range, reference, repository
from tests.registry.conftest import MakeClient, WriteHosts

USER = BasicCredentials("user", "secret")
STRANGER = BasicCredentials("stranger", "wrong-hush")
KINDS = pytest.mark.parametrize("bearer", [False, True], ids=["basic", "bearer"])


def log_in(folder: Path, registry: FakeRegistry, username: str = "user", password: str = "secret") -> Path:
    auth = base64.b64encode(f"{username}:{password}".encode()).decode()
    file = folder / "config.json"
    file.write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
    return file


@KINDS
def test_credentials_given(client: Client, bearer: bool) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        assert client.resolve(reference(registry.address), USER).digest == digest
        with pytest.raises(errors.Unauthorized, match=f"{registry.address}.*answered 401"):
            client.resolve(reference(registry.address), STRANGER)
        with pytest.raises(errors.Unauthorized, match="image pull secret"):
            client.head(reference(registry.address))


@KINDS
def test_the_nodes_own(make_client: MakeClient, tmp_path: Path, bearer: bool) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        client = make_client(docker_config=log_in(tmp_path, registry))
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        assert client.head(reference(registry.address)).digest == digest
        assert client.resolve(reference(registry.address)).digest == digest
        assert client.has_blob(repository(registry.address), registry.put_blob(b"x"))
        # The challenge is learned once; a token is asked for once.
        assert [request.status for request in registry.requests] == [401, *([200] * (4 if bearer else 3))]
        log_in(tmp_path, registry, password="changed")
        if not bearer:
            with pytest.raises(errors.Unauthorized):
                client.head(reference(registry.address))


@KINDS
def test_the_nodes_own_do_not_help_whoever_gives_credentials(
    make_client: MakeClient, tmp_path: Path, bearer: bool
) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        client = make_client(docker_config=log_in(tmp_path, registry))
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.head(reference(registry.address))
        with pytest.raises(errors.Unauthorized):
            client.head(reference(registry.address), STRANGER)


@KINDS
def test_what_a_pod_brought_serves_its_repository_and_who_asks_for_it(client: Client, bearer: bool) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        assert client.head(reference(registry.address), remembered=True).digest == digest
        assert client.resolve(reference(registry.address), remembered=True).digest == digest
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        assert client.has_blob(repository(registry.address), blob)
        assert client.read_blob(repository(registry.address), Descriptor("", blob, 10), 10) == b"0123456789"
        with pytest.raises(errors.Unauthorized):
            client.head(reference(registry.address))
        other = Repository(registry.address, "models/other")
        with pytest.raises(errors.Unauthorized):
            client.has_blob(other, blob)


@KINDS
def test_the_newest_that_works(make_client: MakeClient, tmp_path: Path, bearer: bool) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        blob = registry.put_blob(b"0123456789")
        client = make_client(docker_config=log_in(tmp_path, registry, password="old"))
        for credentials in (STRANGER, USER, STRANGER):
            client.remember(repository(registry.address), credentials)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        node = make_client(docker_config=log_in(tmp_path, registry))
        node.remember(repository(registry.address), STRANGER)
        assert read_range(node, registry.address, blob, 2, 6) == b"2345"


def test_the_token_server_is_asked_for_pulling_alone(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.resolve(reference(registry.address), USER)
        asked = next(request for request in registry.requests if request.path == "/token")
        assert asked.method == "GET"
        assert asked.query == {"service": registry.address, "scope": f"repository:{REPOSITORY}:pull"}
        assert asked.auth == "Basic"


@pytest.mark.parametrize("key", ["token", "access_token"])
@pytest.mark.parametrize("life", [None, 300])
def test_anonymous_tokens(client: Client, key: str, life: int | None) -> None:
    with FakeRegistry(auth=Auth(bearer=True, anonymous=True, token_key=key, life=life)) as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        for _ in range(3):
            assert client.resolve(reference(registry.address)).digest == digest
        assert [request.auth for request in registry.requests] == ["", "", "Bearer", "Bearer", "Bearer"]


def test_a_token_forgotten_in_the_middle_of_life_is_renewed(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        for _ in range(3):
            assert read_range(client, registry.address, blob, 2, 6) == b"2345"
            registry.forget_tokens()
        # blob 401, token, blob; then twice: blob 401, token, blob
        assert [request.status for request in registry.requests] == [401, 200, 206] * 3


def test_a_token_forgotten_while_the_token_server_is_down(client: Client) -> None:
    """What the token server says is told: passing trouble, and as soon as it is up the range comes."""
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        registry.forget_tokens()
        registry.behaviour.status = {"/token": 503}
        for _ in range(2):
            with pytest.raises(errors.Unreachable, match=r"token server.*answered 503"):
                open_range(client, registry.address, blob, 2, 6)
        registry.behaviour.status = {}
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"


def test_tokens_that_end_at_once_are_asked_for_each_time(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True, life=0)) as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        for _ in range(2):
            client.head(reference(registry.address), USER)
        # Zero is no life; the specification's minute is assumed.
        assert [request.path for request in registry.requests].count("/token") == 1


def test_a_token_that_is_never_taken(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.behaviour.only, registry.behaviour.status = ".*/manifests/.*", {".*": 401}
        registry.behaviour.headers = {"WWW-Authenticate": f'Bearer realm="{registry.origin}/token"'}
        with pytest.raises(errors.Unauthorized):
            client.head(reference(registry.address), USER)
        assert [request.path for request in registry.requests].count("/token") == 2


def test_many_threads_share_one_token(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        registry.behaviour.only, registry.behaviour.delay = "/token", 0.2
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: got.append(read_range(client, registry.address, blob, 2, 6)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [b"2345"] * 8
        assert [request.path for request in registry.requests].count("/token") == 1


def test_a_token_that_ends_in_the_middle_of_many_ranges(client: Client) -> None:
    """Forgotten while eight read: each range comes, and one of the eight asks for the next token."""
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        blob = registry.put_blob(b"0123456789" * 100)
        client.remember(repository(registry.address), USER)
        between, got = threading.Barrier(8, action=registry.forget_tokens), list[bytes]()

        def read(n: int) -> None:
            for k in range(10):
                if k == 5:
                    between.wait(10)
                got.append(read_range(client, registry.address, blob, n * 100 + k, n * 100 + k + 4))

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == sorted((b"0123456789" * 2)[k : k + 4] for k in range(10) for _ in range(8))
        statuses = [request.status for request in registry.requests if request.path != "/token"]
        assert statuses.count(206) == 80
        assert statuses.count(401) <= 16
        assert len(registry.requests) - len(statuses) == 2


def test_a_token_that_ends_before_it_is_used(client: Client) -> None:
    """The old one is refused, and so is the new one; the next is taken. One that is refused again is refused for good."""
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        registry.forget_tokens()
        registry.behaviour = Behaviour(token_losses=1)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        assert [request.status for request in registry.requests][3:] == [401, 200, 401, 200, 206]
        registry.forget_tokens()
        registry.behaviour = Behaviour(token_losses=2)
        with pytest.raises(errors.Unauthorized):
            open_range(client, registry.address, blob, 2, 6)


def test_a_token_is_renewed_before_it_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is refused for it: of the life that was named, a fifth is left unused."""
    now = [1000.0]
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with FakeRegistry(auth=Auth(bearer=True, life=100)) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        for passed in (0, 79, 80, 159, 160):
            now[0] = 1000.0 + passed
            assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        statuses = [(request.path == "/token", request.status) for request in registry.requests]
        range_, token = (False, 206), (True, 200)
        assert statuses == [(False, 401), token, range_, range_, token, range_, range_, token, range_]


@pytest.mark.parametrize(
    ("status", "noun"), [(401, "Unauthorized"), (403, "Forbidden"), (500, "Unreachable"), (404, "NotFound")]
)
def test_a_token_server_that_refuses(client: Client, status: int, noun: str) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.behaviour.status = {"/token": status}
        with pytest.raises(errors.Failure, match="token server") as caught:
            client.head(reference(registry.address), USER)
        assert type(caught.value) is getattr(errors, noun)


def test_forbidden_to_nobody_means_log_in(client: Client) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.behaviour.status = {"/token": 403}
        with pytest.raises(errors.Unauthorized, match="docker login"):
            client.head(reference(registry.address))


def test_a_token_server_that_hangs(make_client: MakeClient) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.behaviour.only, registry.behaviour.hang = "/token", True
        with pytest.raises(errors.Unreachable, match="no answer in time"):
            make_client(read_timeout=0.2).head(reference(registry.address), USER)


def test_a_token_server_that_talks_nonsense(client: Client) -> None:
    with FakeRegistry() as server, FakeRegistry() as registry:
        registry.behaviour.status = {".*": 401}
        for body in (b"<html>hush", b"[]", b'{"token":""}', b'{"token":"a\\nb"}', b'{"token":5}'):
            server.put_manifest("token", "x", body)
            realm = f"{server.origin}/v2/token/manifests/x"
            registry.behaviour.headers = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
            with pytest.raises(errors.Malformed, match="token server") as caught:
                client.head(reference(registry.address), USER)
            assert "hush" not in str(caught.value)


@pytest.mark.parametrize("challenge", ["", "Negotiate", 'Digest realm="x"', "Bearer", 'Bearer scope="x"', '\x01,,="'])
def test_a_challenge_we_cannot_answer(client: Client, challenge: str) -> None:
    with FakeRegistry() as registry:
        registry.behaviour.status, registry.behaviour.headers = {".*": 401}, {"WWW-Authenticate": challenge}
        with pytest.raises(errors.Unauthorized, match="no way to log in that we know"):
            client.head(reference(registry.address), USER)


@pytest.mark.parametrize("realm", ["ftp://x/", "http://[::1", "nonsense", "http://", "http://a b/"])
def test_a_realm_that_is_nowhere(client: Client, realm: str) -> None:
    with FakeRegistry() as registry:
        registry.behaviour.status = {".*": 401}
        registry.behaviour.headers = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
        with pytest.raises(errors.Malformed, match="names a token server"):
            client.head(reference(registry.address), USER)


def test_headers_of_hosts_toml_go_to_the_host_and_its_token_server(client: Client, write_hosts: WriteHosts) -> None:
    with FakeRegistry(auth=Auth(bearer=True)) as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        headers = 'x-gate = ["one", "two"]\nAuthorization = "Basic bm86bm8="\nRange = "bytes=0-0"\nHost = "elsewhere"\n'
        write_hosts(registry.address, f'server = "{registry.origin}"\n[header]\n{headers}')
        client.resolve(reference(registry.address), USER)
        assert [request.headers["x-gate"] for request in registry.requests] == ["two"] * 3
        assert [request.auth for request in registry.requests] == ["Basic", "Basic", "Bearer"]
        assert [request.range for request in registry.requests] == ["", "", ""]
        assert {request.headers["host"] for request in registry.requests} == {registry.address}


def test_forbidden(client: Client) -> None:
    """A registry may say 403 to one name and welcome another."""
    with FakeRegistry(auth=Auth()) as registry:
        blob = registry.put_blob(b"0123456789")
        client.remember(repository(registry.address), USER)
        assert read_range(client, registry.address, blob, 2, 6) == b"2345"
        registry.behaviour.status = {".*": 403}
        with pytest.raises(errors.Forbidden, match="answered 403 DENIED"):
            open_range(client, registry.address, blob, 2, 6)


def test_secrets_stay_secret(client: Client, write_hosts: WriteHosts, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    words = [repr(USER), str(USER), repr(STRANGER)]
    for bearer in (False, True):
        with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
            write_hosts(registry.address, f'server = "{registry.origin}"\n[host."{registry.origin}"]\n')
            registry.add_model(REPOSITORY, "v1", {"a": b"1"})
            client.resolve(reference(registry.address), USER)
            with pytest.raises(errors.Unauthorized) as caught:
                client.resolve(reference(registry.address), STRANGER)
            words += [repr(caught.value), str(caught.value), *(repr(request) for request in registry.requests)]
            given = registry.tokens
        everything = "".join(words) + caplog.text
        assert "leave host=" in caplog.text
        for secret in ("secret", "wrong-hush", base64.b64encode(b"user:secret").decode(), *given):
            assert secret not in everything.replace("image pull secret", "")
