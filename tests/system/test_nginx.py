"""The lab's nginx before a registry: what it passes on, what it serves itself, and what one connection gets."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import debian, documents
from tests.lab.check import settled
from tests.lab.content import Generated
from tests.lab.nginx import Nginx
from tests.lab.push import Pushed
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

MIB = 1 << 20
CONTENT = Generated(4 * MIB, 1)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    try:
        debian.docker_registry(), debian.nginx()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    with settled(tmp_path), Registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def model(registry: Registry) -> Pushed:
    return registry.push.model({"a.bin": CONTENT})


def blob(model: Pushed) -> str:
    return f"/v2/models/lab/blobs/{model.layers['a.bin']}"


def get(connection: http.client.HTTPConnection, path: str, wanted: str = "") -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("GET", path, headers={"Accept": documents.MANIFEST, **({"Range": wanted} if wanted else {})})
    answer = connection.getresponse()
    return answer, answer.read()


def test_manifests_are_the_registrys_and_blobs_have_digest_and_ranges(
    registry: Registry, model: Pushed, tmp_path: Path
) -> None:
    with Nginx(tmp_path / "nginx", registry) as nginx:
        connection = http.client.HTTPConnection(nginx.host, timeout=30)
        answer, manifest = get(connection, "/v2/models/lab/manifests/v1")
        assert answer.headers["Docker-Content-Digest"] == model.digest
        assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == model.digest
        assert json.loads(manifest)["layers"][0]["digest"] == model.layers["a.bin"]
        registry.forget()
        answer, whole = get(connection, blob(model))
        assert answer.headers["Docker-Content-Digest"] == model.layers["a.bin"]
        assert whole == CONTENT.at(0, CONTENT.size)
        answer, part = get(connection, blob(model), "bytes=100-1099")
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes 100-1099/{CONTENT.size}")
        assert part == CONTENT.at(100, 1000)
        assert registry.served() == [], "a blob is none of its business"
        assert get(connection, f"/v2/models/lab/blobs/sha256:{'0' * 64}")[0].status == 404
        connection.close()


def test_its_log_tells_ranges_and_connections(registry: Registry, model: Pushed, tmp_path: Path) -> None:
    with Nginx(tmp_path / "nginx", registry) as nginx:
        first, second = (http.client.HTTPConnection(nginx.host, timeout=30) for _ in range(2))
        for connection, wanted in ((first, "bytes=0-9"), (first, "bytes=10-19"), (second, "")):
            get(connection, blob(model), wanted)
        first.close()
        second.close()
        served = nginx.served()
        assert [(a.status, a.bytes, a.range, a.is_of_blob) for a in served] == [
            (206, 10, "bytes=0-9", True),
            (206, 10, "bytes=10-19", True),
            (200, CONTENT.size, "", True),
        ]
        assert served[0].connection == served[1].connection != served[2].connection
        nginx.forget()
        assert nginx.served() == []


def test_a_rate_is_that_of_a_connection_whatever_is_asked_on_it(
    registry: Registry, model: Pushed, tmp_path: Path
) -> None:
    """A connection is never faster than its rate, in short ranges neither: a busy machine only makes it slower."""
    rate = 8_000_000
    with Nginx(tmp_path / "nginx", registry, rate=rate) as nginx:
        for step in (CONTENT.size, 64 << 10):
            connection = http.client.HTTPConnection(nginx.host, timeout=30)
            began = time.monotonic()
            for at in range(0, CONTENT.size, step):
                assert len(get(connection, blob(model), f"bytes={at}-{at + step - 1}")[1]) == step
            took = time.monotonic() - began
            connection.close()
            assert took > 0.8 * CONTENT.size / rate
