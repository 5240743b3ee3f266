"""A reference: asked of a real HTTP registry that is good, refuses, lies or is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelvold.doctor import model
from modelvold.doctor.asking import ask, route_of
from modelvold.doctor.line import Line
from modelvold.doctor.model import Here, Route
from modelvold.errors import InvalidInput
from modelvold.oci.reference import Reference

from tests.fakes.registry import Auth, FakeRegistry
from tests.lab.check import settled
from tests.oci import models

FACADE = "127.0.0.1:7878"
LEADS = Route(True, "https://r.example", FACADE, Path("/certs/r.example/hosts.toml"))
HERE = Here("lazy", 1 << 40, LEADS)

Look = Callable[..., dict[str, Line]]


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Look]:
    """A reference → its lines by name; nothing outlives it."""

    def said(reference: str, here: Here = HERE, config: str = "") -> dict[str, Line]:
        file = tmp_path / "docker.json"
        if config:
            file.write_text(config)
        answer = ask(Reference.parse(reference), tmp_path / "certs.d", file, FACADE, "amd64")
        return {line.what: line for line in model.check(answer, here)}

    with settled(tmp_path):
        yield said


@pytest.fixture
def registry(look: Look) -> Iterator[FakeRegistry]:
    del look  # settled after the registry has ended
    with FakeRegistry() as registry:
        yield registry


def bad(lines: dict[str, Line]) -> list[str]:
    return [what for what, line in lines.items() if line.level == "bad"]


def test_a_good_one(look: Look, registry: FakeRegistry) -> None:
    digest = registry.add_model("m", "v1", {"model.safetensors": b"x" * 5000, "config.json": b"{}"})
    lines = look(f"{registry.address}/m:v1")
    assert list(lines) == ["registry", "model", "bytes", "layers", "mounting", "through containerd"]
    assert {line.level for line in lines.values()} == {"ok"}
    assert lines["registry"].seen == f"{registry.address} answers, and asks for no credentials"
    assert lines["model"].seen == f"{registry.address}/m:v1, 4.88 KiB, {digest}"
    assert lines["layers"].seen == "1 weight (raw), 1 weight.config (raw): all can be mounted"
    assert lines["mounting"].seen.startswith("by the backend lazy: at once")
    assert registry.bytes_sent() == 1


def test_an_index_leads_to_its_model(look: Look, registry: FakeRegistry) -> None:
    content = models.document(models.layer())
    registry.put_blob(b"{}")
    registry.put_manifest("m", None, content)
    entry = models.entry(content, artifact_type="application/vnd.cncf.model.manifest.v1+json")
    registry.put_manifest("m", "v1", models.index_document(entry), "application/vnd.oci.image.index.v1+json")
    assert bad(look(f"{registry.address}/m:v1")) == []
    nested = models.index_document(models.entry(models.index_document(entry)))
    registry.put_manifest("n", "v1", nested, "application/vnd.oci.image.index.v1+json")
    assert bad(look(f"{registry.address}/n:v1")) == ["registry"]


def test_an_image_is_no_model(look: Look, registry: FakeRegistry) -> None:
    registry.put_manifest("i", "v1", models.image())
    lines = look(f"{registry.address}/i:v1")
    assert bad(lines) == ["model"]
    assert "not a ModelPack model" in lines["model"].seen


def test_tar_is_mounted_and_compressed_is_not(look: Look, registry: FakeRegistry) -> None:
    registry.put_blob(b"{}")
    tar = models.layer(None, b"{}", mediaType=f"{models.CNCF}.doc.v1.tar")
    registry.put_manifest("t", "v1", models.document(tar, models.layer()))
    assert look(f"{registry.address}/t:v1")["layers"].seen == "1 doc (tar), 1 weight (raw): all can be mounted"
    packed = [models.layer(None, bytes([n]) * 9, mediaType=f"{models.CNCF}.weight.v1.tar+gzip") for n in range(5)]
    for n in range(5):
        registry.put_blob(bytes([n]) * 9)
    registry.put_manifest("p", "v1", models.document(*packed))
    lines = look(f"{registry.address}/p:v1")
    assert bad(lines) == ["layers"]
    assert lines["layers"].seen.startswith("5 weight (tar+gzip): this version does not mount compressed layers")
    assert lines["layers"].seen.endswith("and 2 more)")
    assert "modelvold pack" in lines["layers"].mend
    assert "mounting" not in lines


def test_there_is_none(look: Look, registry: FakeRegistry) -> None:
    lines = look(f"{registry.address}/m:v1")
    assert bad(lines) == ["registry"]
    assert "404" in lines["registry"].seen


def test_a_registry_that_is_down(look: Look) -> None:
    with FakeRegistry() as registry:
        address = registry.address
    lines = look(f"{address}/m:v1")
    assert bad(lines) == ["registry"]
    assert "Connection refused" in lines["registry"].seen


def test_a_registry_that_lies(look: Look, registry: FakeRegistry) -> None:
    registry.put_manifest("m", "v1", b"[" * 100_000)
    assert bad(look(f"{registry.address}/m:v1")) == ["registry"]


def test_bytes_that_cannot_be_had(look: Look, registry: FakeRegistry) -> None:
    registry.add_model("m", "v1", {"a": b"x" * 100})
    registry.behaviour.status = {".*/blobs/.*": 403}
    lines = look(f"{registry.address}/m:v1")
    assert bad(lines) == ["bytes"]
    assert "403" in lines["bytes"].seen


@pytest.mark.parametrize("bearer", [False, True])
def test_credentials(look: Look, bearer: bool) -> None:
    with FakeRegistry(auth=Auth(bearer=bearer)) as registry:
        registry.add_model("m", "v1", {"a": b"x"})
        reference = f"{registry.address}/m:v1"
        lines = look(reference)
        assert bad(lines) == ["registry"]
        assert "there are none for it in" in lines["registry"].seen
        assert "docker login" in lines["registry"].mend

        def logged_in(password: str) -> str:
            return json.dumps({"auths": {registry.address: {"username": "user", "password": password}}})

        lines = look(reference, config=logged_in("secret"))
        assert lines["registry"].seen.endswith("docker.json")
        assert "accepts the credentials of" in lines["registry"].seen
        lines = look(reference, config=logged_in("guessed"))
        assert "refused were the credentials of" in lines["registry"].seen
        assert "guessed" not in str(lines)
        assert bad(look(reference, config="{")) == ["registry"]


def test_anybody_may_read(look: Look) -> None:
    with FakeRegistry(auth=Auth(bearer=True, anonymous=True)) as registry:
        registry.add_model("m", "v1", {"a": b"x"})
        assert look(f"{registry.address}/m:v1")["registry"].seen.endswith("lets anybody read it")


def test_how_it_would_be_mounted_here(look: Look, registry: FakeRegistry) -> None:
    registry.add_model("m", "v1", {"a": b"x" * 100})
    reference = f"{registry.address}/m:v1"
    assert look(reference, Here("directory", 1 << 20, LEADS))["mounting"].seen.endswith("when all of it is here")
    assert look(reference, Here("lazy", 99, LEADS))["mounting"].level == "warn"
    assert bad(look(reference, Here("", 1 << 20, LEADS))) == ["mounting"]


def test_how_containerd_gets_at_it(look: Look, registry: FakeRegistry) -> None:
    digest = registry.add_model("m", "v1", {"a": b"x"})
    name = f"{registry.address}/m"
    aside = Route(False, "https://r.example", FACADE, Path("/certs/r.example/hosts.toml"))
    line = look(f"{name}:v1", Here("lazy", 1 << 20, aside))["through containerd"]
    assert line.level == "warn"
    assert "empty folder" in line.seen
    assert "/certs/r.example/hosts.toml" in line.mend
    assert 'server = "https://r.example"' in line.mend
    assert "through containerd" not in look(f"{name}:v1", Here("lazy", 1 << 20, None))
    line = look(f"{name}@{digest}")["through containerd"]
    assert line.level == "warn"
    assert f"reference: {name}:modelvold-sha256-{digest.hex}" in line.mend
    lines = look(f"{name}:modelvold-sha256-{digest.hex}")
    assert lines["through containerd"].level == "ok"
    assert lines["model"].seen == f"{name}, 1 B, {digest}"


def test_routes(tmp_path: Path) -> None:
    def route(reference: str) -> Route:
        return route_of(Reference.parse(reference), tmp_path, FACADE)

    assert route("r.example/m") == Route(False, "https://r.example", FACADE, tmp_path / "r.example/hosts.toml")
    assert route("m/m").server == "https://registry-1.docker.io"
    folder = tmp_path / "127.0.0.1_5000_"
    folder.mkdir()
    assert route("127.0.0.1:5000/m") == Route(False, "http://127.0.0.1:5000", FACADE, folder / "hosts.toml")
    (folder / "hosts.toml").write_text(f'server = "http://x:1"\n[host."http://{FACADE}"]\n')
    assert route("127.0.0.1:5000/m") == Route(True, "http://x:1", FACADE, folder / "hosts.toml")
    for broken in ("[[[", "a = " + "[" * 5000, 'server = "http://[x"'):
        (folder / "hosts.toml").write_text(broken)
        with pytest.raises(InvalidInput):
            route("127.0.0.1:5000/m")
