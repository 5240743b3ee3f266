"""A real OCI registry on loopback, read only, with every bad habit a test may ask for.

It listens on 127.0.0.1, answers HTTP/1.1 with kept-alive connections from threads of its own, and ends all of them
with its `with`. What it holds is common to all repositories, but manifests belong to the repository they were put
into. What it does wrong is said in `behaviour`, at any time; what it was asked is in `requests`.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from modelvold.oci.digest import Digest
from modelvold.oci.document import MANIFEST

from tests.fakes.authority import Identity
from tests.fakes.behaviour import Auth, Behaviour, Request
from tests.fakes.content import Generated, generated
from tests.fakes.conversation import Server

__all__ = ["Auth", "Behaviour", "FakeRegistry", "Generated", "Request", "generated"]


class FakeRegistry:
    """A registry as a context manager. `tls` is the identity it shows, with `clients_of` a CA whose clients alone may
    come.
    """

    def __init__(
        self, tls: Identity | ssl.SSLContext | None = None, auth: Auth | None = None, *, host: str = "127.0.0.1"
    ) -> None:
        self.auth = auth
        self.behaviour = Behaviour()
        self.requests: list[Request] = []
        self.blobs: dict[str, Generated] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.tokens: set[str] = set()
        self.context = tls.server_context() if isinstance(tls, Identity) else tls
        self.ending = threading.Event()
        self._server = Server(self, host)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-registry")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """`127.0.0.1:<port>`"""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    @property
    def origin(self) -> str:
        return f"{'https' if self.context else 'http'}://{self.address}"

    def put_blob(self, content: bytes | Generated, digest: Digest | None = None) -> Digest:
        """Hold `content`. A digest given is believed, which saves hashing and lets the registry lie."""
        blob = content if isinstance(content, Generated) else Generated.of(content)
        digest = digest or blob.digest()
        self.blobs[str(digest)] = blob
        return digest

    def put_manifest(self, repository: str, tag: str | None, document: bytes, media_type: str = MANIFEST) -> Digest:
        """Hold `document` under its digest, and under `tag` where there is one."""
        digest = Digest.of(document)
        for target in (str(digest), *([tag] if tag else [])):
            self.manifests[repository, target] = (document, media_type)
        return digest

    def add_model(self, repository: str, tag: str, files: Mapping[str, bytes | Generated]) -> Digest:
        """A ModelPack artifact with one raw layer for each file. Returns the manifest's digest."""
        layers = []
        for path, content in files.items():
            size = content.size if isinstance(content, Generated) else len(content)
            layers.append(_layer(path, self.put_blob(content), size))
        config = json.dumps(
            {
                "descriptor": {"createdAt": "2025-07-21T00:00:00Z", "family": "test", "name": repository},
                "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
                "config": {"architecture": "transformer", "format": "safetensors", "paramSize": "0.1b"},
            }
        ).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.cncf.model.config.v1+json",
                "digest": str(self.put_blob(config)),
                "size": len(config),
            },
            "layers": layers,
        }
        return self.put_manifest(repository, tag, json.dumps(manifest).encode())

    def forget_tokens(self) -> None:
        """Every token given so far is refused from now on."""
        self.tokens.clear()

    def requests_for(self, digest: Digest | str) -> list[Request]:
        return [request for request in tuple(self.requests) if request.path.endswith(f"/{digest}")]

    def bytes_sent(self) -> int:
        """Of blobs, all told."""
        return sum(request.sent for request in tuple(self.requests) if request.is_blob)


def _layer(path: str, digest: Digest, size: int) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    kind = "weight" if name.endswith((".safetensors", ".gguf", ".bin")) else "weight.config"
    metadata = {"name": name, "mode": 420, "uid": 0, "gid": 0, "size": size, "mtime": "2025-07-01T10:20:30.123456789Z"}
    return {
        "mediaType": f"application/vnd.cncf.model.{kind}.v1.raw",
        "digest": str(digest),
        "size": size,
        "annotations": {
            "org.cncf.model.filepath": path,
            "org.cncf.model.file.metadata+json": json.dumps({**metadata, "typeflag": 0}),
        },
    }
