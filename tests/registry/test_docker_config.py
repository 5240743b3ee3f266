"""Docker's config.json: every way in which people have logged in."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from modelvold.errors import InvalidInput, Unauthorized
from modelvold.oci.reference import Repository
from modelvold.registry import docker_config
from modelvold.registry.credentials import BasicCredentials, Credentials
from modelvold.registry.docker_config import DockerConfig

from tests.fakes.registry import Auth, FakeRegistry
from tests.registry.asking import REPOSITORY, reference
from tests.registry.conftest import MakeClient


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def entry(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write(file: Path, **config: Any) -> DockerConfig:
    file.write_text(json.dumps(config))
    return DockerConfig(file)


class Program:
    """A `docker-credential-<name>` on the PATH that notes what it was asked."""

    def __init__(self, folder: Path, name: str, body: str) -> None:
        self._notes = folder / f"{name}.notes"
        script = folder / f"docker-credential-{name}"
        script.write_text(f'#!/bin/sh\nread -r registry\necho "$1 $registry" >> {self._notes}\n{body}\n')
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    ("key", "address", "path"),
    [
        ("registry.example", "registry.example", "a/b"),
        ("https://registry.example", "registry.example", "a/b"),
        ("http://registry.example/", "registry.example", "a/b"),
        ("https://registry.example/v1/", "registry.example", "a/b"),
        ("https://registry.example/v2/", "registry.example", "a/b"),
        ("registry.example:5000", "registry.example:5000", "a/b"),
        ("https://index.docker.io/v1/", "registry-1.docker.io", "library/a"),
        ("https://index.docker.io/v1/", "docker.io", "library/a"),
        ("docker.io", "registry-1.docker.io", "library/a"),
        ("registry.example/a", "registry.example", "a/b"),
        ("registry.example/a/b", "registry.example", "a/b"),
    ],
)
def test_keys(file: Path, key: str, address: str, path: str) -> None:
    assert write(file, auths={key: entry("u", "p:q")}).of(address, path) == ("u", "p:q")


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("registry.example", "registry.example:5000"),
        ("registry.example:5000", "registry.example"),
        ("registry.example", "evil-registry.example"),
        ("registry.example/c", "registry.example"),
        ("registry.example/a/b/c", "registry.example"),
    ],
)
def test_keys_of_others(file: Path, key: str, address: str) -> None:
    assert write(file, auths={key: entry("u", "p")}).of(address, "a/b") is None


def test_the_most_specific_key(file: Path) -> None:
    config = write(file, auths={"r.example": entry("host", "p"), "r.example/a": entry("folder", "p")})
    assert config.of("r.example", "a/b") == ("folder", "p")
    assert config.of("r.example", "c") == ("host", "p")


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"username": "u", "password": "p"}, ("u", "p")),
        ({"auth": base64.b64encode(b"u:p\0\0").decode()}, ("u", "p")),
        ({"auth": "!!!"}, None),
        ({"auth": base64.b64encode(b"nocolon").decode()}, None),
        ({"auth": base64.b64encode(b"\xff:\xfe").decode()}, None),
        ({}, None),
        ({"username": "u"}, None),
    ],
)
def test_entries(file: Path, auth: dict[str, str], expected: tuple[str, str] | None) -> None:
    assert write(file, auths={"r.example": auth}).of("r.example", "a") == expected


def test_no_file_is_an_empty_one(file: Path) -> None:
    config = DockerConfig(file)
    assert config.of("r.example", "a") is None
    file.write_text(json.dumps({"auths": {"r.example": entry("u", "p")}}))
    assert config.of("r.example", "a") == ("u", "p")
    file.write_text(json.dumps({"auths": {"r.example": entry("u", "changed")}}))
    assert config.of("r.example", "a") == ("u", "changed")
    file.unlink()
    assert config.of("r.example", "a") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": 5}', '{"auths": {"r.example": "hush"}}', '{"credsStore": 5}'])
def test_a_malformed_file_is_named_and_not_quoted(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidInput, match=str(file)) as caught:
        DockerConfig(file).of("r.example", "a")
    assert "hush" not in str(caught.value)


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=str(tmp_path)):
        DockerConfig(tmp_path).of("r.example", "a")


def test_programs_by_registry_then_by_store_then_entries(file: Path, programs: Path) -> None:
    one = Program(programs, "one", """echo '{"ServerURL":"x","Username":"one","Secret":"p"}'""")
    store = Program(programs, "store", "echo 'credentials not found in native keychain'; exit 1")
    auths = {"r.example": entry("listed", "p"), "q.example": entry("listed", "p")}
    config = write(file, auths=auths, credHelpers={"r.example": "one"}, credsStore="store")
    assert config.of("r.example", "a") == ("one", "p")
    assert config.of("q.example", "a") == ("listed", "p")
    assert config.of("docker.io", "library/a") is None
    assert one.asked == ["get r.example"]
    assert store.asked == ["get q.example", "get https://index.docker.io/v1/"]
    assert config.trouble("q.example") == ""


def test_a_program_is_asked_once_and_again_when_renewed(
    file: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Program(programs, "one", """echo '{"Username":"one","Secret":"p"}'""")
    config = write(file, credsStore="one")
    for _ in range(3):
        assert config.of("r.example", "a") == ("one", "p")
    assert not config.forget("r.example")
    assert len(one.asked) == 1
    monkeypatch.setattr(docker_config, "_FRESH_SECONDS", 0.0)
    assert config.forget("r.example")
    assert not config.forget("r.example")
    assert config.of("r.example", "a") == ("one", "p")
    assert len(one.asked) == 2


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("missing", "", "docker-credential-missing is not on the PATH"),
        ("../bin/sh", "", "no program's name"),
        ("fails", "echo hush >&2; exit 3", "ended with status 3"),
        ("babbles", "echo hush", "did not answer in JSON"),
        ("token", """echo '{"Username":"<token>","Secret":"hush"}'""", "identity token"),
        ("slow", "exec sleep 20", "did not end in time"),
    ],
)
def test_programs_in_trouble(
    file: Path,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    body: str,
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(docker_config, "_PROGRAM_SECONDS", 0.5 if name == "slow" else 10.0)
    if body:
        Program(programs, name, body)
    config = write(file, credsStore=name)
    assert config.of("r.example", "a") is None
    assert words in config.trouble("r.example")
    assert words in caplog.text
    assert "hush" not in caplog.text


def test_an_identity_token_alone(file: Path) -> None:
    config = write(file, auths={"r.example": {"identitytoken": "hush"}})
    assert config.of("r.example", "a") is None
    assert "identity token" in config.trouble("r.example")


def test_trouble_is_told_with_the_refusal(make_client: MakeClient, file: Path) -> None:
    file.write_text('{"credsStore": "missing"}')
    client = make_client(docker_config=file)
    with FakeRegistry(auth=Auth()) as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        with pytest.raises(Unauthorized, match="docker-credential-missing is not on the PATH"):
            client.resolve(reference(registry.address))
    with FakeRegistry() as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.resolve(reference(registry.address))


def test_a_program_with_a_newer_password_saves_the_request(
    make_client: MakeClient, file: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_config, "_FRESH_SECONDS", 0.0)
    Program(programs, "cloud", """echo '{"Username":"user","Secret":"first"}'""")
    file.write_text('{"credsStore": "cloud"}')
    client = make_client(docker_config=file)
    with FakeRegistry(auth=Auth(password="first")) as registry:
        registry.add_model(REPOSITORY, "v1", {"a": b"1"})
        client.head(reference(registry.address))
        registry.auth = Auth(password="second")
        Program(programs, "cloud", """echo '{"Username":"user","Secret":"second"}'""")
        client.head(reference(registry.address))
        assert [request.status for request in registry.requests] == [401, 200, 401, 200]


def test_default_path() -> None:
    home = Path("/root")
    assert docker_config.default_path({}, home) == Path("/root/.docker/config.json")
    assert docker_config.default_path({"DOCKER_CONFIG": "/x"}, home) == Path("/x/config.json")


def test_what_pods_brought_is_bounded() -> None:
    credentials, place = Credentials(), Repository("r.example", "a")
    brought = [BasicCredentials("u", str(n)) for n in range(6)]
    for one in brought:
        credentials.remember(place, one)
    credentials.remember(place, brought[3])
    assert credentials.remembered(place) == (brought[3], brought[5], brought[4], brought[2])
    for n in range(5000):
        credentials.remember(Repository("r.example", f"x{n}"), brought[0])
    assert credentials.remembered(place) == ()
    assert credentials.remembered(Repository("r.example", "x4999")) == (brought[0],)
