"""How images and models come into the lab's registries: plain HTTP, one monolithic upload a blob.

Content made from a seed is written straight into the registry's storage folder, in the form its filesystem driver
keeps: one pass instead of four (ours to hash and to send, the registry's to receive and to hash).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import secrets
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tests.lab import debian, documents
from tests.lab.content import Content, Generated, blocks_of, digest_of, size_of
from tests.lab.documents import Document
from tests.lab.tokens import TokenServer


@dataclass(frozen=True, slots=True)
class Pushed:
    """`layers` maps a model's paths (of an image: numbers) to digests; `size` counts the layers' bytes."""

    reference: str
    digest: str
    layers: Mapping[str, str] = field(repr=False)
    size: int

    @property
    def pinned(self) -> str:
        """The reference by digest."""
        return f"{self.reference.rpartition(':')[0]}@{self.digest}"


class Layer(Protocol):
    """What is pushed as one layer: a file at `path`, or a tar, whose annotation `path` is, and whose modes and times are in it."""

    @property
    def is_tar(self) -> bool: ...

    @property
    def path(self) -> str: ...

    @property
    def content(self) -> bytes: ...

    @property
    def mode(self) -> int: ...

    @property
    def mtime(self) -> int: ...


class Push:
    """The writing side of one registry at `host`."""

    def __init__(
        self,
        host: str,
        storage: Path,
        trust: ssl.SSLContext | None = None,
        basic: tuple[str, str] | None = None,
        tokens: TokenServer | None = None,
    ) -> None:
        self.host = host
        self._storage = storage
        self._trust = trust
        self._basic = basic
        self._tokens = tokens

    def model(
        self, files: Mapping[str, Content], repository: str = "models/lab", tag: str = "v1", *, family: str = "cncf"
    ) -> Pushed:
        """A ModelPack artifact with one raw layer a file, in the order given."""
        layers = []
        for path, content in files.items():
            layers.append(documents.model_layer(path, self.blob(repository, content), size_of(content), family=family))
        config = documents.model_config(layers)
        manifest = documents.model_manifest(self.described(repository, config), layers, family=family)
        return self._pushed(repository, tag, manifest, list(files))

    def layers(self, layers: Sequence[Layer], repository: str = "models/lab", tag: str = "v1") -> Pushed:
        """A ModelPack artifact of raw layers and tars; the digests are by number."""
        described = []
        for layer in layers:
            digest, size = self.blob(repository, layer.content), len(layer.content)
            described.append(
                documents.tar_layer(layer.path, digest, size)
                if layer.is_tar
                else documents.model_layer(layer.path, digest, size, mode=layer.mode, mtime=layer.mtime)
            )
        config = documents.model_config(described)
        manifest = documents.model_manifest(self.described(repository, config), described)
        return self._pushed(repository, tag, manifest, [str(number) for number in range(len(layers))])

    def image(
        self, repository: str = "lab/busybox", tag: str = "v1", files: Mapping[str, bytes] | None = None
    ) -> Pushed:
        """An ordinary image that sleeps: a static busybox and `files`, by absolute path, in one uncompressed layer."""
        return self.tars([documents.busybox_layer(debian.busybox(), files)], repository, tag)

    def tars(self, layers: Sequence[bytes], repository: str, tag: str = "v1") -> Pushed:
        """An ordinary image of these layers, tars as they are or packed with gzip; it sleeps. The digests are by number."""
        described = [
            {
                "mediaType": documents.IMAGE_LAYER + ("+gzip" if _is_gzip(layer) else ""),
                **self.described(repository, layer),
            }
            for layer in layers
        ]
        diff_ids = [digest_of(gzip.decompress(layer) if _is_gzip(layer) else layer) for layer in layers]
        config = self.described(repository, documents.image_config(diff_ids))
        manifest = documents.image_manifest(config, described)
        return self._pushed(repository, tag, manifest, [str(number) for number in range(len(layers))])

    def described(self, repository: str, content: Content) -> Document:
        """Pushes a blob; its digest and size, to which a descriptor lacks only a media type."""
        return {"digest": self.blob(repository, content), "size": size_of(content)}

    def blob(self, repository: str, content: Content) -> str:
        """Pushes a blob; its digest."""
        if isinstance(content, Generated):
            return str(self.stored(repository, content.blocks())["digest"])
        digest = digest_of(content)
        _, place = self._ask("POST", f"/v2/{repository}/blobs/uploads/", repository, expect=202)
        path = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        self._ask("PUT", path, repository, content, "application/octet-stream", expect=201)
        return digest

    def stored(self, repository: str, blocks: Iterable[bytes]) -> Document:
        """As `described`, of what `blocks` gives: written as docker-registry's filesystem driver does, the bytes once, a link
        from the repository."""
        self._storage.mkdir(parents=True, exist_ok=True)
        unfinished = self._storage / f"lab-{secrets.token_hex(8)}"
        summed, size = hashlib.sha256(), 0
        with unfinished.open("wb", buffering=0) as file:
            for block in blocks:
                summed.update(block)
                size += file.write(block)
        digest = summed.hexdigest()
        blob = self._storage / "blobs/sha256" / digest[:2] / digest
        blob.mkdir(parents=True, exist_ok=True)
        unfinished.rename(blob / "data")
        link = self._storage / "repositories" / repository / "_layers/sha256" / digest / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(f"sha256:{digest}")
        return {"digest": f"sha256:{digest}", "size": size}

    def manifest(
        self, repository: str, tag: str, manifest: Document | bytes, media_type: str = documents.MANIFEST
    ) -> str:
        """Pushes a manifest under a tag or digest; its digest. docker-registry refuses one that is no manifest."""
        content = manifest if isinstance(manifest, bytes) else documents.to_json(manifest)
        self._ask("PUT", f"/v2/{repository}/manifests/{tag}", repository, content, media_type, expect=201)
        return digest_of(content)

    def _pushed(self, repository: str, tag: str, manifest: Document, names: Sequence[str]) -> Pushed:
        digest = self.manifest(repository, tag, manifest)
        layers = manifest["layers"]
        digests = {name: layer["digest"] for name, layer in zip(names, layers, strict=True)}
        return Pushed(f"{self.host}/{repository}:{tag}", digest, digests, sum(layer["size"] for layer in layers))

    def _ask(
        self, method: str, path: str, repository: str, body: Content = b"", media_type: str = "", *, expect: int
    ) -> tuple[bytes, str]:
        """The answer's body, and the path of its Location."""
        headers = {"Content-Length": str(size_of(body)), **self._authorization(repository)}
        if media_type:
            headers["Content-Type"] = media_type
        connection = (
            http.client.HTTPSConnection(self.host, context=self._trust, timeout=60)
            if self._trust
            else http.client.HTTPConnection(self.host, timeout=60)
        )
        try:
            connection.request(method, path, blocks_of(body), headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != expect:
            raise AssertionError(f"{method} {path}: {answer.status} {said[:300].decode(errors='replace')}")
        place = urlsplit(answer.headers.get("Location", ""))
        return said, f"{place.path}?{place.query}" if place.query else place.path

    def _authorization(self, repository: str) -> dict[str, str]:
        if self._tokens:
            access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
            return {"Authorization": f"Bearer {self._tokens.token('lab', access)}"}
        if self._basic:
            return {"Authorization": f"Basic {base64.b64encode(':'.join(self._basic).encode()).decode()}"}
        return {}


def _is_gzip(layer: bytes) -> bool:
    return layer.startswith(b"\x1f\x8b")
