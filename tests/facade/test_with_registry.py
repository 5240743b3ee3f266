"""The façade before a real registry, through the real client and a real hosts.toml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelvold.facade import Facade, Upstream
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Repository
from modelvold.registry.client import Client
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.hosts import Hosts

from tests.facade.upstream import MemoryGiven, Reply, ask, basic
from tests.fakes.registry import Auth, FakeRegistry
from tests.lab.program import free_port
from tests.oci.models import image

POD = BasicCredentials("pod", "pods-own")


@dataclass
class Node:
    """A registry, and a façade that its hosts.toml names."""

    registry: FakeRegistry
    facade: Facade
    credentials: Credentials

    def manifest(self, target: str, method: str = "GET", **fields: dict[str, str]) -> Reply:
        path = f"/v2/team/model/manifests/{target}?ns={self.registry.address}"
        return ask(self.facade.address, path, method, **fields)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    port = free_port()
    with FakeRegistry() as registry:
        folder = tmp_path / f"{registry.address.replace(':', '_')}_"
        folder.mkdir()
        (folder / "hosts.toml").write_text(
            f'server = "{registry.origin}"\n[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        credentials = Credentials()
        with Client(Hosts(tmp_path), credentials, facade=f"127.0.0.1:{port}") as client:
            upstream: Upstream = client
            with Facade(("127.0.0.1", port), upstream, MemoryGiven(), "amd64") as facade:
                yield Node(registry, facade, credentials)


def test_a_pull_fetches_one_manifest_and_no_blob(node: Node) -> None:
    original = node.registry.add_model("team/model", "v1", {"config.json": b"{}", "a/model.safetensors": b"x" * 5000})
    head = node.manifest("v1", "HEAD")
    found = node.manifest(head.digest)
    assert str(Digest.of(found.body)) == head.digest
    (only,) = json.loads(found.body)["layers"]
    assert only["size"] == 5002
    assert [(one.method, one.path.rpartition("/")[2]) for one in node.registry.requests] == [
        ("HEAD", "v1"),
        ("GET", str(original)),
    ]
    assert {one.headers["modelvold-hop"] for one in node.registry.requests} == {"1"}


def test_an_image_and_a_missing_tag_are_sent_on(node: Node) -> None:
    node.registry.put_manifest("team/model", "app", image())
    assert node.manifest("app", "HEAD").status == 404
    assert node.manifest("missing", "HEAD").status == 424


def test_only_the_pods_own_credentials_open_it(node: Node) -> None:
    node.registry.add_model("team/model", "v1", {"config.json": b"{}"})
    node.registry.auth = Auth(POD.username, POD.password)
    assert node.manifest("v1", "HEAD").headers["www-authenticate"].startswith("Basic ")
    assert node.manifest("v1", "HEAD", headers=basic(BasicCredentials("pod", "guess"))).status == 401
    digest = node.manifest("v1", "HEAD", headers=basic(POD)).digest
    repository = Repository(node.registry.address, "team/model")
    assert node.credentials.remembered(repository) == (POD,)
    # What one pod brought opens nothing for another.
    assert node.manifest("v1", "HEAD").status == 401
    assert node.manifest(digest).status == 401
    assert node.manifest(digest, headers=basic(POD)).status == 200


def test_a_token_server_is_asked_with_the_pods_credentials(node: Node) -> None:
    node.registry.add_model("team/model", "v1", {"config.json": b"{}"})
    node.registry.auth = Auth(POD.username, POD.password, bearer=True)
    assert node.manifest("v1", "HEAD").status == 401
    assert node.manifest("v1", "HEAD", headers=basic(POD)).status == 200
    assert "Bearer" in {one.auth for one in node.registry.requests}


@pytest.mark.parametrize(("upstream", "answered"), [(403, 401), (429, 503), (500, 503), (503, 503)])
def test_trouble_is_answered_in_its_class(node: Node, upstream: int, answered: int) -> None:
    """403 asks the caller for credentials of its own first."""
    node.registry.behaviour.status = {".*": upstream}
    reply = node.manifest("v1")
    assert reply.status == answered
    assert node.registry.address in reply.error["message"]


@pytest.mark.parametrize("content", [b"<html>", b" " * (5 << 20)])
def test_what_is_no_manifest_fails_with_its_text(node: Node, content: bytes) -> None:
    node.registry.put_manifest("team/model", "v1", content)
    head = node.manifest("v1", "HEAD")
    assert head.status == 200
    reply = node.manifest(head.digest)
    assert reply.status == 422
    assert f"{node.registry.address}/team/model" in reply.error["message"]
