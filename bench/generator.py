"""A registry whose models are never stored: each layer is one block of 8 MiB again and again, sent by `sendfile` from memory.

    python -m bench.generator PORT 4x512 16x2048        # models of N layers of M MiB, tagged v0, v1, … in `bench/generated`

It listens once all digests are known, which takes a pass of sha256 over all that it will ever send. A process of its own, so that
what it costs is in nobody else's figures. Beside a registry's paths: `…/first` is the first model's first layer, `/sent` tells the bytes
of layers sent so far.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from tests.lab import documents
from tests.lab.content import Generated

REPOSITORY = "bench/generated"
MIB = 1 << 20
_BLOCK = 8 * MIB


@dataclass(frozen=True, slots=True)
class _Layer:
    """`block`: a descriptor of the memory that is repeated."""

    size: int
    digest: str
    block: int


@dataclass
class _Holdings:
    documents: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # by what ends a path: body, media type
    layers: dict[str, _Layer] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards `sent`
    sent: int = 0


def _made(seed: int, size: int) -> _Layer:
    content = Generated(_BLOCK, seed).at(0, _BLOCK)
    block = os.memfd_create(f"layer-{seed}")
    os.pwrite(block, content, 0)
    summed = hashlib.sha256()
    for at in range(0, size, _BLOCK):
        summed.update(content if size - at >= _BLOCK else memoryview(content)[: size - at])
    return _Layer(size, f"sha256:{summed.hexdigest()}", block)


def _hold(models: list[tuple[int, int]]) -> _Holdings:
    """Of each model the number of layers, and their size in bytes."""
    held, seeds = _Holdings(), count()
    for number, (layers, size) in enumerate(models):
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            made = list(threads.map(_made, [next(seeds) for _ in range(layers)], [size] * layers))
        described = [documents.model_layer(f"model-{n:02}.safetensors", one.digest, size) for n, one in enumerate(made)]
        config = documents.model_config(described)
        digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        manifest = documents.model_manifest({"digest": digest, "size": len(config)}, described)
        body = documents.to_json(manifest)
        held.documents[digest] = config, "application/octet-stream"
        for name in (f"v{number}", f"sha256:{hashlib.sha256(body).hexdigest()}"):
            held.documents[name] = body, documents.MANIFEST
        held.layers.update({one.digest: one for one in made})
    return held


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, held: _Holdings) -> None:
        self.held = held
        super().__init__(("127.0.0.1", port), _Conversation)


class _Conversation(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        held = self.server.held
        if layer := next(iter(held.layers.values())) if name == "first" else held.layers.get(name):
            self._send_layer(layer)
        elif self.path == "/sent":
            self._send_document(str(held.sent).encode(), "text/plain")
        elif found := held.documents.get(name):
            self._send_document(*found)
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _send_document(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(body).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_layer(self, layer: _Layer) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else layer.size, layer.size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{layer.size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if self.command == "GET":
            self._send_block(layer.block, first, end)

    def _send_block(self, block: int, first: int, end: int) -> None:
        at = first
        try:
            while at < end:
                start = at % _BLOCK
                at += os.sendfile(self.connection.fileno(), block, start, min(_BLOCK - start, end - at))
        except OSError:  # whoever asked has gone
            self.close_connection = True
        with self.server.held.lock:
            self.server.held.sent += at - first


def main(port: str, *models: str) -> None:
    parsed = [(int(layers), int(size) * MIB) for layers, _, size in (model.partition("x") for model in models)]
    with _Server(int(port), _hold(parsed)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
