"""Pushing to a real registry, and to one that refuses."""

from __future__ import annotations

import base64
import http.server
import json
import os
import resource
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from modelvold.errors import Failure, Forbidden, InvalidInput, Malformed, NotFound, Refused, Unauthorized, Unreachable
from modelvold.oci import document, modelpack
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference
from modelvold.pack import push as pushing
from modelvold.pack.folder import Doing, Packed, Step, pack
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts

from tests.lab.ca import Authority
from tests.lab.registry import Registry
from tests.lab.tokens import Rules, TokenServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text('{"model_type": "bert"}')
    (root / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (root / "sub" / "copy.safetensors").write_bytes((root / "model.safetensors").read_bytes())
    (root / "sub" / "caf\u00e9 .txt").write_bytes(b"")
    return root


def _push(
    packed: Packed, reference: str, credentials: Credentials | None = None, hosts: Hosts | None = None
) -> list[Step]:
    steps: list[Step] = []
    pushing.push(
        packed, Reference.parse(reference), hosts or Hosts(), credentials or Credentials(), on_step=steps.append
    )
    return steps


def _docker_config(tmp_path: Path, host: str, password: str = "secret") -> Credentials:
    file = tmp_path / "docker.json"
    file.write_text(json.dumps({"auths": {host: {"username": "me", "password": password}}}))
    return Credentials(file)


def test_a_folder_is_read_back_from_the_registry_as_it_was(folder: Path, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        packed = pack(folder, "m")
        steps = _push(packed, f"{registry.host}/team/m:v1")
        with urllib.request.urlopen(_get(f"{registry.url}/v2/team/m/manifests/v1")) as response:
            manifest = document.parse(response.read(), "test")
        assert isinstance(manifest, document.Manifest)
        assert manifest.digest == packed.artifact.digest
        model = modelpack.read(manifest, "test")
        assert {layer.path for layer in model.layers} == {
            "config.json",
            "model.safetensors",
            "sub/copy.safetensors",
            "sub/caf\u00e9 .txt",
        }
        for layer in model.layers:
            with urllib.request.urlopen(f"{registry.url}/v2/team/m/blobs/{layer.descriptor.digest}") as response:
                assert response.read() == (folder / layer.path).read_bytes()
        uploads = [r for r in registry.served() if r.method == "PUT" and "/blobs/" in r.path]
        assert len(uploads) == 4  # two files have the same bytes; the config is one more
        assert sum(step.size for step in steps if step.doing is Doing.SENT) == 3_000_000 + len('{"model_type": "bert"}')


def test_what_the_registry_holds_is_not_sent_again(folder: Path, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        packed = pack(folder, "m")
        _push(packed, f"{registry.host}/m:v1")
        registry.forget()
        steps = _push(packed, f"{registry.host}/m:v2")
        assert {step.doing for step in steps} == {Doing.HELD}
        assert [r.path for r in registry.served() if r.method in {"PUT", "POST"}] == ["/v2/m/manifests/v2"]


def test_basic_credentials_of_docker_login(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, "m")
    with Registry(tmp_path / "registry", users={"me": "secret"}) as registry:
        reference = f"{registry.host}/m:v1"
        _push(packed, reference, _docker_config(tmp_path, registry.host))
        for wrong in (Credentials(), _docker_config(tmp_path, registry.host, "wrong")):
            with pytest.raises(Unauthorized, match="401") as failure:
                _push(packed, reference, wrong)
            assert "docker login" in failure.value.remedy
            assert "wrong" not in str(failure.value)


def test_a_token_is_asked_anew_for_the_right_to_push(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, "m")
    with _refusing("TOKEN", 0) as (host, requests):
        _push(packed, f"{host}/m:v1", _docker_config(tmp_path, host))
        assert {authorization for method, _, authorization in requests if method in {"POST", "PUT"}} == {
            "Bearer pull,push"
        }
        with pytest.raises(Unauthorized, match="401"):
            _push(packed, f"{host}/m:v2", _docker_config(tmp_path, host, "wrong"))
        with pytest.raises(Unauthorized, match="401"):
            _push(packed, f"{host}/m:v2")


def test_a_real_registry_that_wants_tokens(folder: Path, tmp_path: Path) -> None:
    """The laboratory's token server grants pulling alone, so the push is refused, and by name."""
    packed = pack(folder, "m")
    authority = Authority(tmp_path / "ca")
    with TokenServer(authority, Rules(users={"me": "secret"})) as tokens:
        with Registry(tmp_path / "registry", tokens=tokens) as registry, pytest.raises(Unauthorized, match="401"):
            _push(packed, f"{registry.host}/m:v1", _docker_config(tmp_path, registry.host))
        assert any(request.user == "me" and request.status == 200 for request in tokens.requests)


def test_a_private_authority_named_in_hosts_toml(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, "m")
    authority = Authority(tmp_path / "ca")
    with Registry(tmp_path / "registry", authority=authority) as registry:
        with pytest.raises(Refused, match="answered 400") as failure:
            _push(packed, f"{registry.host}/m:v1")
        assert "hosts.toml" in failure.value.remedy  # plain HTTP to a registry that speaks TLS
        place = tmp_path / "hosts" / registry.host
        place.mkdir(parents=True)
        place.joinpath("hosts.toml").write_text(f'server = "{registry.url}"\nca = "{authority.certificate}"\n')
        _push(packed, f"{registry.host}/m:v1", hosts=Hosts(tmp_path / "hosts"))
        place.joinpath("hosts.toml").write_text(f'server = "{registry.url}"\n')
        with pytest.raises(Unreachable, match="not trusted"):
            _push(packed, f"{registry.host}/m:v1", hosts=Hosts(tmp_path / "hosts"))


def test_a_host_that_may_speak_tls_is_asked_so_first(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, "m")
    with Registry(tmp_path / "registry") as registry:
        place = tmp_path / "hosts" / registry.host
        place.mkdir(parents=True)
        place.joinpath("hosts.toml").write_text(f'server = "http://{registry.host}"\nskip_verify = true\n')
        _push(packed, f"{registry.host}/m:v1", hosts=Hosts(tmp_path / "hosts"))
        place.joinpath("hosts.toml").write_text(f'server = "https://{registry.host}"\n')
        with pytest.raises(Unreachable, match="does not speak TLS"):
            _push(packed, f"{registry.host}/m:v1", hosts=Hosts(tmp_path / "hosts"))


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    root = tmp_path / "model"
    root.mkdir()
    size = 400 << 20
    with (root / "model.bin").open("wb") as stream:
        stream.truncate(size)
    with Registry(tmp_path / "registry") as registry:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _push(pack(root, "m"), f"{registry.host}/m:v1")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < size // 4


def test_a_file_that_changes_after_it_was_hashed_is_refused(folder: Path, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        packed = pack(folder, "m")
        with (folder / "config.json").open("ab") as stream:
            stream.write(b"x")
        with pytest.raises(Refused, match=r"config.json' changed while it was packed"):
            _push(packed, f"{registry.host}/m:v1")
        assert not [r for r in registry.served() if "/manifests/" in r.path]


def test_a_push_needs_a_tag(folder: Path) -> None:
    packed = pack(folder, "m")
    with pytest.raises(InvalidInput, match="needs a tag"):
        _push(packed, f"127.0.0.1:1/m@{Digest.of(b'')}")


def test_nobody_there(folder: Path) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1: Connection refused"):
        _push(pack(folder, "m"), "127.0.0.1:1/m:v1")


@pytest.mark.parametrize(
    ("at", "status", "noun", "said"),
    [
        ("POST", 403, Forbidden, "403 DENIED"),
        ("POST", 404, NotFound, "404 DENIED"),
        ("POST", 405, Refused, "no pushes"),
        ("PUT", 413, Refused, "limit for request bodies"),
        ("POST", 400, Refused, "400 DENIED"),
        ("MANIFEST", 403, Forbidden, "the manifest"),
        ("POST", 202, Refused, "202"),
        ("LOCATION", 0, Malformed, "without end"),
    ],
)
def test_each_refusal_says_whose_fault_it_is(
    folder: Path, at: str, status: int, noun: type[Failure], said: str
) -> None:
    with _refusing(at, status) as (host, requests), pytest.raises(noun) as failure:
        _push(pack(folder, "m"), f"{host}/m:v1")
    assert said in str(failure.value)
    assert host in failure.value.message
    assert "signature" not in str(failure.value)
    assert requests


def test_a_blob_is_sent_again_when_the_registry_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "_PAUSES", (0.0, 0.0))
    with _refusing("PUT", 502, times=2) as (host, requests):
        steps = _push(pack(folder, "m"), f"{host}/m:v1")
    sent = sum(step.size for step in steps if step.doing is Doing.SENT)
    assert sent == 3_000_000 + len('{"model_type": "bert"}')
    assert len([r for r in requests if r[0] == "PUT" and "uploads" in r[1]]) == 6
    with _refusing("PUT", 502) as (host, _), pytest.raises(Unreachable, match="502"):
        _push(pack(folder, "m"), f"{host}/m:v1")


def test_credentials_stay_with_the_registry_they_are_for(folder: Path, tmp_path: Path) -> None:
    with _refusing("", 0) as (storage, stored), _refusing("ELSEWHERE", 0, basic=True, elsewhere=storage) as (host, _):
        _push(pack(folder, "m"), f"{host}/m:v1", _docker_config(tmp_path, host))
    assert [method for method, _, _ in stored] == ["PUT"] * 4
    assert not any(authorization for _, _, authorization in stored)


def _get(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Accept": document.MANIFEST})


@contextmanager
def _refusing(
    at: str, status: int, *, times: int = 1 << 30, basic: bool = False, elsewhere: str = ""
) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A registry that takes everything, but answers `status` at one step, the first `times`; and what it was asked."""
    requests: list[tuple[str, str, str]] = []
    left = threading.Semaphore(times) if times < 1 << 30 else None

    class Asked(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            while length and (got := len(self.rfile.read(min(length, 1 << 20)))):
                length -= got
            if length:  # the other uploads are broken off when one has failed
                self.close_connection = True
                return None
            authorization = self.headers.get("Authorization", "")
            if basic and not authorization:
                return self._send(401, {"WWW-Authenticate": 'Basic realm="x"'})
            if at == "TOKEN" and not self._is_allowed(authorization):
                return None
            if self.path == "/v2/":
                return self._send(200, {})
            requests.append((self.command, self.path, authorization))
            step = "MANIFEST" if "/manifests/" in self.path else self.command
            if at == step and (left is None or left.acquire(blocking=False)):
                return self._send(status, {})
            if step == "HEAD":
                return self._send(404, {})
            if step == "POST":
                base = f"http://{elsewhere}" if elsewhere else ""
                where = "/v2/m/blobs/uploads/1?signature=x"
                return self._send(307 if at == "LOCATION" else 202, {"Location": base + where})
            return self._send(201, {})

        def _is_allowed(self, authorization: str) -> bool:
            """A token server and a registry that takes its tokens: each is good for the scope it was asked for."""
            if self.path.startswith("/token"):
                granted = authorization == f"Basic {base64.b64encode(b'me:secret').decode()}"
                scope = urllib.parse.parse_qs(self.path.partition("?")[2]).get("scope", [""])[0]
                self._send(200 if granted else 401, {}, json.dumps({"token": scope.rpartition(":")[2]}).encode())
                return False
            needed = "pull" if self.command in {"GET", "HEAD"} else "pull,push"
            if needed in authorization.removeprefix("Bearer "):
                return True
            scope = f'realm="http://{self.headers["Host"]}/token",service="s",scope="repository:m:{needed}"'
            self._send(401, {"WWW-Authenticate": f"Bearer {scope}"})
            return False

        def _send(self, code: int, headers: dict[str, str], body: bytes = b"") -> None:
            if code >= 400 and self.command != "HEAD":
                body = b'{"errors":[{"code":"DENIED","message":"signature"}]}'
            self.send_response(code)
            for name, text in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet: what matters is in `requests`."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()
