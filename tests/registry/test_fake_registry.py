"""The fake registry is what others build on: its contents, and that it ends whatever hangs in it."""

from __future__ import annotations

import http.client
import threading

from modelvold.layer.extent import BlobOffset
from modelvold.oci import document, modelpack
from modelvold.oci.digest import Digest
from modelvold.oci.document import Manifest
from modelvold.registry.client import Client

from tests.fakes.registry import FakeRegistry, Generated, generated
from tests.registry.asking import REPOSITORY, drain, reference, repository


def test_generated_contents_are_the_same_however_read() -> None:
    content = generated(50_000, seed=3)
    whole = content.read(0, 50_000)
    assert len(whole) == 50_000
    for offset, length in ((0, 0), (0, 1), (4095, 2), (4096, 4096), (49_999, 1), (123, 40_000)):
        assert content.read(offset, length) == whole[offset : offset + length]
    assert content.digest() == Digest.of(whole)
    assert generated(50_000, seed=4).read(0, 100) != whole[:100]
    assert Generated.of(whole).digest() == content.digest()


def test_a_model_is_modelpack(client: Client) -> None:
    files = {"config.json": b"{}", "weights/model.safetensors": generated(5_000)}
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", files)
        manifest = client.resolve(reference(registry.address))
        assert isinstance(manifest, Manifest)
        assert document.parse(manifest.document, "x") == manifest
        assert modelpack.is_model(manifest)
        assert [layer.path for layer in modelpack.read(manifest, "x").layers] == list(files)
        config = client.read_blob(repository(registry.address), manifest.config, 1 << 20)
        assert config.startswith(b"{")


def test_a_huge_blob_needs_no_memory(client: Client) -> None:
    huge = generated(1 << 42)
    with FakeRegistry() as registry:
        digest = registry.put_blob(huge, Digest.of(b"name"))
        start = (1 << 42) - 10
        end = BlobOffset(1 << 42)
        with client.open_range(repository(registry.address), digest, BlobOffset(start), end, timeout=5) as body:
            assert drain(body) == huge.read(start, 10)
        assert registry.bytes_sent() == 10
        assert [request.range for request in registry.requests_for(digest)] == [f"bytes={start}-{(1 << 42) - 1}"]


def test_it_ends_whoever_hangs_in_it() -> None:
    with FakeRegistry() as registry:
        digest = registry.put_blob(generated(1 << 30), Digest.of(b"name"))
        registry.behaviour.stall_after = 10
        stalled = http.client.HTTPConnection(registry.address)
        stalled.request("GET", f"/v2/a/blobs/{digest}")
        assert stalled.getresponse().read(10)
        registry.behaviour.hang = True
        hanging = http.client.HTTPConnection(registry.address)
        hanging.request("GET", "/v2/")
        idle = http.client.HTTPConnection(registry.address)
        idle.connect()
        names = {thread.name for thread in threading.enumerate()}
        assert "fake-registry" in names
    for connection in (stalled, hanging, idle):
        connection.close()
    assert "fake-registry" not in {thread.name for thread in threading.enumerate()}
