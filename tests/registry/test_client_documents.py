"""Manifests and small blobs: found, bounded, believed only with the right digest, refused in words."""

from __future__ import annotations

import gzip
import socket
import threading

import modelvold
import pytest
from modelvold import errors
from modelvold.oci.digest import Digest
from modelvold.oci.document import INDEX, Descriptor, Index, Manifest
from modelvold.registry.client import Client

from tests.fakes.registry import FakeRegistry, generated
from tests.registry.asking import NOWHERE, REPOSITORY, reference, repository
from tests.registry.conftest import MakeClient


def test_resolve_by_tag_and_by_digest(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"config.json": b"{}", "model.safetensors": b"weights"})
        by_tag = client.resolve(reference(registry.address))
        by_digest = client.resolve(reference(registry.address).at(digest))
        assert isinstance(by_tag, Manifest)
        assert by_tag == by_digest
        assert by_tag.digest == digest
        assert [layer.size for layer in by_tag.layers] == [2, 7]
        assert [request.path.rpartition("/")[2] for request in registry.requests] == ["v1", str(digest)]


def test_index(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_manifest(REPOSITORY, "v1", b'{"schemaVersion":2,"manifests":[]}', INDEX)
        found = client.resolve(reference(registry.address))
        assert isinstance(found, Index)
        assert found.digest == digest
        assert client.head(reference(registry.address)).media_type == INDEX


def test_every_request_says_who_we_are(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.resolve(reference(registry.address))
        asked = registry.requests[0]
        assert asked.headers["user-agent"] == f"modelvold/{modelvold.__version__}"
        assert asked.headers["modelvold-hop"] == "1"
        assert "vnd.oci.image.manifest.v1+json" in asked.headers["accept"]
        assert asked.query == {}


def test_head_costs_no_body(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        found = client.head(reference(registry.address))
        assert found.digest == digest
        assert found.size == len(registry.manifests[REPOSITORY, "v1"][0])
        assert [request.method for request in registry.requests] == ["HEAD"]


@pytest.mark.parametrize("habit", ["no_digest", "no_length", "no_head", "digest_of_another_kind"])
def test_head_falls_back_to_get(client: Client, habit: str) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        if habit == "digest_of_another_kind":
            registry.behaviour.claimed_digest = "sha512:" + "0" * 128
        elif habit == "no_head":
            registry.behaviour.status_of_method = {"HEAD": 405}
        else:
            setattr(registry.behaviour, habit, True)
        found = client.head(reference(registry.address))
        assert (found.digest, found.size) == (digest, len(registry.manifests[REPOSITORY, "v1"][0]))
        assert [request.method for request in registry.requests] == ["HEAD", "GET"]


def test_connections_are_kept(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        for _ in range(3):
            client.head(reference(registry.address))
            client.resolve(reference(registry.address))
        assert len({request.connection for request in registry.requests}) == 1


def test_a_connection_closed_while_idle_is_replaced(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        registry.behaviour.drop_idle = True
        for _ in range(3):
            client.resolve(reference(registry.address))
        assert len({request.connection for request in registry.requests}) == 3


def test_chunked_and_unframed_documents(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        registry.behaviour.chunked = True
        assert client.resolve(reference(registry.address)).digest == digest
        assert client.resolve(reference(registry.address)).digest == digest
        assert len({request.connection for request in registry.requests}) == 1
        registry.behaviour.chunked, registry.behaviour.until_close = False, True
        assert client.resolve(reference(registry.address)).digest == digest


@pytest.mark.parametrize("framing", ["", "chunked", "until_close"])
def test_a_document_too_large_is_not_read(client: Client, framing: str) -> None:
    size = 64 << 20
    with FakeRegistry() as registry:
        registry.put_manifest(REPOSITORY, "v1", b"{" + b" " * size)
        if framing:
            setattr(registry.behaviour, framing, True)
        with pytest.raises(errors.Malformed, match="more than 4 MiB"):
            client.resolve(reference(registry.address))
    # What the kernel's buffers took in before the connection ended, not what the registry had.
    assert registry.requests[0].sent < size // 2


def test_a_size_beyond_bounds_in_a_head(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.put_manifest(REPOSITORY, "v1", b" " * (5 << 20))
        with pytest.raises(errors.Malformed, match="larger than 4 MiB"):
            client.head(reference(registry.address))


@pytest.mark.parametrize("document", [b"<html>", b"[]", b"{}", b'{"schemaVersion":2,"config":{}}', b"\xff\xfe"])
def test_not_a_manifest(client: Client, document: bytes) -> None:
    with FakeRegistry() as registry:
        registry.put_manifest(REPOSITORY, "v1", document)
        with pytest.raises(errors.Malformed, match=f"{registry.address}/{REPOSITORY}:v1"):
            client.resolve(reference(registry.address))


def test_a_digest_that_lies(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        pinned = reference(registry.address).at(digest)
        registry.behaviour.claimed_digest = str(Digest.of(b"other"))
        for ask in (client.head, client.resolve):
            with pytest.raises(errors.Mismatch, match=registry.address):
                ask(pinned)
        with pytest.raises(errors.Mismatch):
            client.resolve(reference(registry.address))
        registry.behaviour.no_digest = True
        registry.manifests[REPOSITORY, str(digest)] = (b"{}", "")
        with pytest.raises(errors.Mismatch, match=str(digest)):
            client.resolve(pinned)


def test_an_encoded_answer_is_not_believed(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.put_manifest(REPOSITORY, "v1", gzip.compress(b"{}"))
        registry.behaviour.headers = {"Content-Encoding": "gzip"}
        with pytest.raises(errors.Malformed, match="encodes"):
            client.resolve(reference(registry.address))
        assert registry.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "noun", "words"),
    [
        (401, errors.Unauthorized, "docker login"),
        (403, errors.Forbidden, "right to pull"),
        (404, errors.NotFound, "spelling"),
        (429, errors.Unreachable, "wait 7 s"),
        (400, errors.Malformed, "answered 400"),
        (500, errors.Unreachable, "answered 500 UNAVAILABLE"),
        (503, errors.Unreachable, "answered 503"),
        (508, errors.Unreachable, "answered 508"),
    ],
)
def test_refusals(client: Client, status: int, noun: type[errors.Failure], words: str) -> None:
    with FakeRegistry() as registry:
        registry.behaviour.status = {".*": status}
        registry.behaviour.headers = {"Retry-After": "7"}
        for ask in (client.head, client.resolve):
            with pytest.raises(errors.Failure) as caught:
                ask(reference(registry.address))
            assert type(caught.value) is noun
            assert caught.value.message.startswith(f"{registry.address}/{REPOSITORY}:v1: {registry.address}")
            assert caught.value.remedy
        assert words in str(caught.value)


def test_unknown_names_are_not_found(client: Client) -> None:
    with FakeRegistry() as registry, pytest.raises(errors.NotFound, match="answered 404 MANIFEST_UNKNOWN"):
        client.resolve(reference(registry.address))


def test_nobody_listens(client: Client) -> None:
    with pytest.raises(errors.Unreachable, match=f"{NOWHERE}/models/tiny:v1: {NOWHERE}: Connection refused"):
        client.resolve(reference(NOWHERE))


def test_a_name_that_does_not_exist(client: Client) -> None:
    with pytest.raises(errors.Unreachable, match=r"registry\.invalid: the name cannot be resolved"):
        client.head(reference("registry.invalid"))


def test_silence_ends(make_client: MakeClient) -> None:
    client = make_client(read_timeout=0.2)
    with FakeRegistry() as registry:
        registry.behaviour.hang = True
        for ask in (client.head, client.resolve):
            with pytest.raises(errors.Unreachable, match=f"{registry.address}: no answer in time"):
                ask(reference(registry.address))


def test_a_document_that_drips_ends_with_the_time_allowed(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.put_manifest(REPOSITORY, "v1", b"x" * 4096)
        registry.behaviour.stall_after = 1000
        with pytest.raises(errors.Unreachable, match="no answer in time"):
            client.resolve(reference(registry.address), timeout=0.3)


def test_a_document_cut_short(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        registry.behaviour.cut_after = 10
        with pytest.raises(errors.Unreachable, match="ended early"):
            client.resolve(reference(registry.address))


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 OK\r\n\r\n", b""])
def test_what_answers_is_not_http(client: Client, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.Unreachable, match=f"{host}: (it|Connection reset)"):
            client.resolve(reference(host))
        thread.join()


def test_small_blobs(client: Client) -> None:
    with FakeRegistry() as registry:
        for content in (b"", b"x", b"config" * 1000):
            digest = registry.put_blob(content)
            described = Descriptor("", digest, len(content))
            assert client.read_blob(repository(registry.address), described, 1 << 20) == content


def test_small_blobs_that_lie(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(b"12345678")
        place = repository(registry.address)
        with pytest.raises(errors.Malformed, match="more than the 7"):
            client.read_blob(place, Descriptor("", digest, 8), 7)
        assert registry.requests == []
        with pytest.raises(errors.Malformed, match="only 8 of 9 bytes: a size that lies"):
            client.read_blob(place, Descriptor("", digest, 9), 100)
        with pytest.raises(errors.Malformed, match="more than the 7 bytes declared"):
            client.read_blob(place, Descriptor("", digest, 7), 100)
        registry.behaviour.corrupt = True
        with pytest.raises(errors.Mismatch, match=str(digest)):
            client.read_blob(place, Descriptor("", digest, 8), 100)


def test_a_blob_far_larger_than_declared_is_not_read(client: Client) -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(generated(1 << 40), Digest.of(b"huge"))
        registry.behaviour.chunked = True
        with pytest.raises(errors.Malformed):
            client.read_blob(repository(registry.address), Descriptor("", digest, 10), 100)
    assert registry.bytes_sent() < 64 << 20


def test_has_blob(client: Client) -> None:
    with FakeRegistry() as registry:
        place, digest = repository(registry.address), registry.put_blob(b"x")
        assert client.has_blob(place, digest)
        assert not client.has_blob(place, Digest.of(b"other"))
        assert {request.method for request in registry.requests} == {"HEAD"}
        registry.behaviour.status = {".*": 500}
        with pytest.raises(errors.Unreachable):
            client.has_blob(place, digest)
        registry.behaviour.status, registry.behaviour.hang = {}, True
        with pytest.raises(errors.Unreachable, match="no answer in time"):
            client.has_blob(place, digest, timeout=0.2)


def test_a_closed_client_asks_nothing(client: Client) -> None:
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.close()
        client.close()
        with pytest.raises(errors.Unreachable, match="the client is closed"):
            client.resolve(reference(registry.address))
        assert registry.requests == []
