"""The laboratory itself: its servers are real ones, and nothing of them stays."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.lab import debian, needs
from tests.lab.ca import Authority
from tests.lab.check import settled
from tests.lab.containerd import Containerd
from tests.lab.content import Generated, digest_of
from tests.lab.registry import Registry
from tests.lab.tokens import Rules, TokenServer

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    try:
        debian.docker_registry(), debian.busybox()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as running:
        yield running


def get(url: str, headers: dict[str, str] | None = None, trust: ssl.SSLContext | None = None) -> bytes:
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def challenge(url: str, headers: dict[str, str] | None = None, trust: ssl.SSLContext | None = None) -> str:
    """What a request that must be answered 401 is told."""
    with pytest.raises(HTTPError, match="401") as refused:
        get(url, headers, trust)
    refused.value.close()
    return str(refused.value.headers["WWW-Authenticate"])


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.skipif(bool(needs.missing_for_containers()), reason=needs.missing_for_containers())
def test_an_ordinary_pod_runs_and_is_gone_afterwards(tmp_path: Path) -> None:
    with settled(tmp_path), Registry(tmp_path / "r") as registry:
        image = registry.push.image(files={"/hello": b"from the layer\n"})
        with Containerd(tmp_path / "c", image.reference) as containerd:
            containerd.hosts(registry)
            pulled = containerd.cri.pull(image.reference)
            pod = containerd.cri.run_pod()
            container = containerd.cri.create_container(pod, pulled, {"/model": pulled})
            containerd.cri.start(container)
            assert (
                containerd.cri.exec(container, ["/bin/cat", "/hello", "/model/hello"]).stdout == b"from the layer\n" * 2
            )
            refused = containerd.cri.exec(container, ["/bin/touch", "/model/x"])
            assert refused.code == 1
            assert b"Read-only file system" in refused.stderr
            containerd.kill()
            containerd.start()
            assert containerd.cri.is_running(container)
            containerd.cri.remove_pod(pod)
            containerd.cri.remove_image(pulled)
        assert containerd.leftovers == []


@pytest.mark.skipif(bool(needs.missing_for_containers()), reason=needs.missing_for_containers())
def test_what_a_test_forgot_is_removed_and_reported_or_ended(tmp_path: Path) -> None:
    sockets = Path("/run/containerd/s")
    before = set(sockets.iterdir()) if sockets.exists() else set()
    with settled(tmp_path), Registry(tmp_path / "r") as registry:
        image = registry.push.image()
        with Containerd(tmp_path / "c", image.reference) as containerd:
            containerd.hosts(registry)
            containerd.cri.run_pod()
            containerd.kill()
        assert any(left.startswith("pid ") for left in containerd.leftovers)
        assert any(left.startswith("mount ") for left in containerd.leftovers)
        assert not sockets.exists() or set(sockets.iterdir()) <= before


def test_the_registry_counts_what_it_served(registry: Registry) -> None:
    content = Generated(3_000_001, seed=7)
    model = registry.push.model({"weights/a.safetensors": content, "config.json": b"{}"})
    digest = model.layers["weights/a.safetensors"]
    assert digest == digest_of(content)
    registry.forget()
    url = f"{registry.url}/v2/models/lab/blobs/{digest}"
    assert get(url, {"Range": "bytes=1000003-1000902"}) == content.at(1_000_003, 900)
    assert get(url) == b"".join(content.blocks())
    assert [(request.status, request.bytes) for request in registry.blob_requests(digest)] == [
        (206, 900),
        (200, content.size),
    ]
    assert registry.bytes_of(digest) == registry.bytes_served() == content.size + 900
    assert registry.blob_requests("sha256:" + "0" * 64) == []


def test_a_registry_with_tls_and_basic(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    with Registry(tmp_path / "r", users={"lab": "open sesame"}, authority=authority) as registry:
        registry.push.model({"a.bin": b"x"})
        assert challenge(f"{registry.url}/v2/", trust=trust).startswith("Basic ")
        assert get(f"{registry.url}/v2/", basic("lab", "open sesame"), trust) == b"{}"
        assert [request.status for request in registry.served()][-2:] == [401, 200]


def test_a_registry_behind_a_token_server(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    rules = Rules(users={"lab": "secret", "other": "secret"}, private={"other": set()})
    with TokenServer(authority, rules) as tokens, Registry(tmp_path / "r", tokens=tokens) as registry:
        registry.push.model({"a.bin": b"x"})
        manifest = f"{registry.url}/v2/models/lab/manifests/v1"
        accept = "application/vnd.oci.image.manifest.v1+json"
        assert f'realm="{tokens.realm}"' in challenge(manifest)
        for user, is_let_in in (("lab", True), ("other", False)):
            asked = f"{tokens.realm}?service=lab+registry&scope=repository:models/lab:pull"
            token = json.loads(get(asked, basic(user, "secret")))["token"]
            headers = {"Authorization": f"Bearer {token}", "Accept": accept}
            if is_let_in:
                assert b"vnd.cncf.model.manifest" in get(manifest, headers)
            else:
                assert challenge(manifest, headers).startswith("Bearer ")
        assert [(request.user, request.status) for request in tokens.requests] == [("lab", 200), ("other", 200)]


def test_settled_sees_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"left behind: descriptor .*/left"), settled(tmp_path, patience=0.2):
        left = (tmp_path / "left").open("w")
    left.close()
