"""How much is fetched for what is read, when only the headers of all shards are, as an engine does before it allocates anything?

    make bench        (or: python -m bench.headers [--rounds N] [--small])

Models on docker-registry, prefetch off; `modelvold mount`, then a process that reads no more than headers:

- safetensors, 30 shards of 128 MiB with 256 tensors each: the 8 bytes of the length, then the header; and the same by the library's
  `safe_open`, which maps the file.
- GGUF, one file of 512 MiB: everything before the tensors' data. With a vocabulary of 32,000 that is some 700 KiB. With
  128,000 tokens and their merges it is more than the first segment holds, so the next one comes too: no goal, but the figure.
- a real sentence transformer, both ways.

Beside it SOCI (tests/lab/soci.py says which, and what it takes) with the safetensors as an image of one gzip layer each: what it
fetches of layers in spans before its prefetch begins, 30 s after the mount. Its indexes are not counted.

Bytes and requests are those of the registry's own log from the mount on, for the shards' blobs. *most of a shard* is the goal: one
small segment, 2 MiB. A round counts the same as the one before, unless something is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import peers, report
from bench.readers import Piece, Readers
from bench.report import OURS, Figures, Goal
from tests.lab import debian, documents, soci
from tests.lab.content import Content, blocks_of, files_of, size_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import unmount_below
from tests.lab.needs import lazy_folder
from tests.lab.registry import Registry, Request
from tests.lab.soci import Soci, SociRegistry

MIB = 1 << 20
_SMALL_SEGMENT = 2.0  # MiB
_PARTIAL = 206
SOCI = "SOCI"
_OPEN = """
import sys
from safetensors import safe_open
for path in sys.argv[1:]:
    with safe_open(path, framework="np") as file:
        assert len(list(file.keys())) > 0
"""


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of which `header` is read, followed by `rest` bytes of zeros."""

    header: bytes
    rest: int

    @property
    def size(self) -> int:
        return len(self.header) + self.rest

    def blocks(self) -> Iterator[bytes]:
        yield self.header
        for at in range(0, self.rest, MIB):
            yield bytes(min(MIB, self.rest - at))


@dataclass(frozen=True, slots=True)
class Model:
    """`shards`: path → digest and the length of its header, of those whose headers are read."""

    what: str
    reference: str
    shards: Mapping[str, tuple[str, int]]
    has_goal: bool = True


def main() -> None:
    parser = report.arguments(__doc__)
    parser.add_argument("--without-soci", action="store_true")
    chosen = parser.parse_args()
    why_not = "not wanted" if chosen.without_soci else soci.missing()
    figures = Figures()
    goals: list[Goal] = []
    folder = lazy_folder()
    try:
        with Registry(folder / "registry") as registry, Readers(1) as readers:
            for model, by_library in _models(registry, chosen.small):
                for way, read in _ways(model, readers, by_library).items():
                    what = f"{model.what}, {way}"
                    for _ in range(chosen.rounds):
                        _measure(folder / "turn", registry, model, read, what, figures)
                    if model.has_goal:
                        goals.append(Goal(f"{what}: most of a shard, MiB", _SMALL_SEGMENT))
            if not why_not:
                _measure_soci(folder, chosen, readers, figures)
        print(report.machine(folder, peers.versions("docker-registry", "containerd", soci.PACKAGE)))
        print(f"only headers are read, prefetch off; medians of {chosen.rounds}")
        if why_not:
            print(f"{SOCI} was not run: {why_not}")
        report.show("headers", chosen, figures, goals)
    finally:
        shutil.rmtree(folder)


def _ways(model: Model, readers: Readers, by_library: bool) -> dict[str, Callable[[Path], None]]:
    plain: dict[str, Callable[[Path], None]] = {"read": partial(_read, readers, model)}
    return {**plain, "safe_open": partial(_open, model)} if by_library else plain


def _models(registry: Registry, is_small: bool) -> Iterator[tuple[Model, bool]]:
    """With whether the safetensors library reads it, too."""
    shards = _shards(is_small)
    yield _push(registry, _named(shards), "bench/safetensors", shards), not is_small
    size = (64 if is_small else 512) * MIB
    yield _push(registry, "GGUF", "bench/gguf", {"model.gguf": Shard(_gguf(32_000, 0), size)}), False
    if is_small:
        return
    large = {"model.gguf": Shard(_gguf(128_000, 280_000), size)}
    yield _push(registry, "GGUF, large vocabulary", "bench/gguf-large", large, has_goal=False), False
    yield _push_real(registry), True


def _shards(is_small: bool) -> dict[str, Shard]:
    count = 2 if is_small else 30
    return {f"model-{n + 1:05}-of-{count:05}.safetensors": _safetensors(256, n) for n in range(count)}


def _named(shards: Mapping[str, Shard]) -> str:
    return f"{len(shards)} × 128 MiB safetensors"


def _push(
    registry: Registry, what: str, repository: str, shards: Mapping[str, Shard], *, has_goal: bool = True
) -> Model:
    layers, found = [], {}
    for path, shard in shards.items():
        stored = registry.push.stored(repository, shard.blocks())
        layers.append(documents.model_layer(path, stored["digest"], stored["size"]))
        found[path] = (str(stored["digest"]), len(shard.header))
    config = registry.push.described(repository, documents.model_config(layers))
    registry.push.manifest(repository, "v1", documents.model_manifest(config, layers))
    return Model(what, f"{registry.host}/{repository}:v1", found, has_goal)


def _push_real(registry: Registry) -> Model:
    files: dict[str, Content] = files_of(debian.real_model())
    pushed = registry.push.model(files, "bench/real")
    name = "model.safetensors"
    (length,) = struct.unpack("<Q", next(blocks_of(files[name]))[:8])
    what = f"sentence transformer of {size_of(files[name]) // MIB} MiB"
    return Model(what, pushed.reference, {name: (pushed.layers[name], 8 + length)})


def _measure(
    at: Path, registry: Registry, model: Model, read: Callable[[Path], None], what: str, figures: Figures
) -> None:
    here = at / "here"
    here.mkdir(parents=True)
    registry.forget()
    try:
        with Daemon(at / "daemon", {"log": {"level": "info"}, "fetch": {"prefetch": False}}) as daemon:
            ran = daemon.cli("mount", model.reference, here)
            assert ran.returncode == 0, f"modelvold mount: {ran.stderr}\n{daemon.log_text()[-3000:]}"
            read(here)
            requests = registry.blob_requests()
    finally:
        unmount_below(at)
        shutil.rmtree(at)
    digests = {digest for digest, _ in model.shards.values()}
    _count(what, OURS, [request for request in requests if request.digest in digests], model, figures)


def _measure_soci(folder: Path, chosen: argparse.Namespace, readers: Readers, figures: Figures) -> None:
    shards = _shards(chosen.small)
    with SociRegistry(folder / "soci-registry") as registry:
        image = registry.push_image("bench/safetensors", shards, folder / "index")
        headers = {path: ("", len(shard.header)) for path, shard in shards.items()}
        model = Model(_named(shards), image.reference, headers)
        for way, read in _ways(model, readers, by_library=not chosen.small).items():
            for _ in range(chosen.rounds):
                registry.forget()
                with Soci(folder / "turn", registry) as running:
                    read(running.show(image, folder / "turn/here"))
                    spans = [request for request in registry.blob_requests() if request.status == _PARTIAL]
                shutil.rmtree(folder / "turn")
                _count(f"{model.what}, {way}", SOCI, spans, model, figures)


def _count(what: str, who: str, requests: Sequence[Request], model: Model, figures: Figures) -> None:
    of_each: dict[str, int] = {}
    for request in requests:
        of_each[request.digest] = of_each.get(request.digest, 0) + request.bytes
    fetched, length = sum(of_each.values()), sum(header for _, header in model.shards.values())
    figures.add(f"{what}: headers, MiB", who, length / MIB)
    figures.add(f"{what}: fetched, MiB", who, fetched / MIB)
    figures.add(f"{what}: fetched per byte read", who, fetched / length)
    figures.add(f"{what}: most of a shard, MiB", who, max(of_each.values(), default=0) / MIB)
    figures.add(f"{what}: requests", who, len(requests))


def _read(readers: Readers, model: Model, here: Path) -> None:
    """As whoever knows the format does: a few bytes that tell the length, then the rest of the header."""
    pieces: list[Piece] = []
    for path, (_, length) in model.shards.items():
        pieces += [Piece(str(here / path), 0, 8), Piece(str(here / path), 8, length - 8)]
    readers.sweep([pieces], is_mapped=False)


def _open(model: Model, here: Path) -> None:
    words: Sequence[str] = [sys.executable, "-c", _OPEN, *(str(here / path) for path in model.shards)]
    subprocess.run(words, check=True, timeout=120)


# -- headers as they are


def _safetensors(tensors: int, number: int) -> Shard:
    """Tensors of 512 KiB. Format: a length of 8 bytes, JSON padded with spaces to 8, the data in the order of its offsets."""
    size = 512 << 10
    described = {
        f"model.layers.{number}.block.{n}.self_attn.q_proj.weight": {
            "dtype": "BF16",
            "shape": [512, 512],
            "data_offsets": [n * size, (n + 1) * size],
        }
        for n in range(tensors)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **described}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Shard(struct.pack("<Q", len(text)) + text, tensors * size)


_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9


def _gguf(tokens: int, merges: int) -> bytes:
    """Version 3 of the format (ggml/docs/gguf.md): counts, key-value pairs, one description a tensor, padded to 32."""
    pairs = [
        _text("general.architecture") + struct.pack("<I", _STRING) + _text("llama"),
        _text("llama.block_count") + struct.pack("<II", _U32, 32),
        _strings("tokenizer.ggml.tokens", [f"▁tok{n}" for n in range(tokens)]),
        _text("tokenizer.ggml.scores") + struct.pack("<IIQ", _ARRAY, _F32, tokens) + bytes(4 * tokens),
    ]
    if merges:
        pairs.append(_strings("tokenizer.ggml.merges", [f"ab{n} cd{n}" for n in range(merges)]))
    infos = [
        _text(f"blk.{n // 9}.part_{n % 9}.weight") + struct.pack("<IQQIQ", 2, 512, 512, 1, n << 19) for n in range(291)
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join([*pairs, *infos])
    return head + bytes(-len(head) % 32)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _strings(key: str, values: Sequence[str]) -> bytes:
    return _text(key) + struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_text, values))


if __name__ == "__main__":
    main()
