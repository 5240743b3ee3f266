"""A model in a registry in the form that each side understands, and each side's pull of it.

A side pulls from `host` (the registry's, or that of what stands before it) into a fresh folder, and returns the seconds it took: ours and
containerd's run as daemons, started before the clock and stopped after it. What a peer leaves is weighed, not hashed: a side
that returns early is found out.

- modelvold: `modelvold pull` of a ModelPack artifact; returns when all is verified and on disk.
- containerd: CRI's PullImage of the same bytes as an image of one uncompressed tar a file, into overlayfs. It verifies, syncs the tars
  in its content store, and unpacks them unsynced.
- oras: `oras pull`, which writes what has a title, so it gets a second manifest of the same blobs. It verifies and syncs nothing.
- crane: `crane pull --format=oci`, which writes every blob as a file. It verifies and syncs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.measure import bytes_in, timed, turns, warm
from bench.report import Figures
from tests.lab import debian, documents
from tests.lab.containerd import Containerd
from tests.lab.content import Content, blocks_of, size_of
from tests.lab.daemon import Daemon, Settings
from tests.lab.registry import Registry

#: Pulls into a folder of its own; the seconds.
Side = Callable[[Path], float]
_TIMEOUT = 900
_TITLE = "org.opencontainers.image.title"
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Subject:
    """`repository` has the tag `v1`, a ModelPack artifact, and `titled`, the same for oras; `<repository>-image:v1` is the image.
    `digests` are the layers', `blobs` the files in the registry that hold all of it."""

    what: str
    repository: str
    digests: tuple[str, ...]
    size: int
    blobs: tuple[Path, ...]


def push(
    registry: Registry, what: str, repository: str, files: Mapping[str, Content], *, image: bool = True
) -> Subject:
    pushed = registry.push.model(files, repository)
    digests = [pushed.layers[path] for path in files]
    layers = [
        {**documents.model_layer(path, digest, size_of(content)), "annotations": {_TITLE: path}}
        for (path, content), digest in zip(files.items(), digests, strict=True)
    ]
    config = registry.push.described(repository, b"{}")
    registry.push.manifest(repository, "titled", documents.model_manifest(config, layers))
    tars = [str(layer["digest"]) for layer in _push_image(registry, f"{repository}-image", files)] if image else []
    storage = registry.folder / "storage/docker/registry/v2/blobs/sha256"
    names = [digest.removeprefix("sha256:") for digest in (*digests, *tars)]
    blobs = tuple(storage / name[:2] / name / "data" for name in names)
    return Subject(what, repository, tuple(digests), pushed.size, blobs)


def _push_image(registry: Registry, repository: str, files: Mapping[str, Content]) -> list[documents.Document]:
    layers = [registry.push.stored(repository, _tar(path, content)) for path, content in files.items()]
    config = registry.push.described(repository, documents.image_config([str(layer["digest"]) for layer in layers]))
    registry.push.manifest(repository, "v1", documents.image_manifest(config, layers))
    return layers


def _tar(path: str, content: Content) -> Iterator[bytes]:
    member = tarfile.TarInfo(f"model/{path}")
    member.size = size_of(content)
    yield member.tobuf(tarfile.GNU_FORMAT)
    yield from blocks_of(content)
    yield bytes(-member.size % _BLOCK + 2 * _BLOCK)


def modelvold(host: str, subject: Subject, settings: Settings | None = None) -> Side:
    def pull(folder: Path) -> float:
        with Daemon(folder, {"log": {"level": "info"}, **(settings or {})}) as daemon:
            return timed(lambda: _succeeded(daemon.cli("pull", f"{host}/{subject.repository}:v1", timeout=_TIMEOUT)))

    return pull


def containerd(host: str, subject: Subject) -> Side:
    def pull(folder: Path) -> float:
        with Containerd(folder / "c", f"{host}/none:v1") as running:
            reference = f"{host}/{subject.repository}-image:v1"
            return timed(lambda: running.cri.pull(reference, timeout=_TIMEOUT))

    return pull


def oras(host: str, subject: Subject, *words: str) -> Side:
    reference = f"{host}/{subject.repository}:titled"
    return lambda folder: _program([debian.oras(), "pull", "--plain-http", *words, "-o", folder / "out", reference])


def crane(host: str, subject: Subject) -> Side:
    reference = f"{host}/{subject.repository}:v1"
    return lambda folder: _program([debian.crane(), "pull", "--insecure", "--format=oci", reference, folder / "out"])


def aria2c(host: str, subject: Subject) -> Side:
    """`aria2c -x16 -s16` of each layer's blob, one after another; it verifies and syncs nothing."""

    def pull(folder: Path) -> float:
        words = [*debian.aria2c(), "-q", "--no-conf", "-x16", "-s16", "--file-allocation=falloc", "-d", str(folder)]
        urls = [f"http://{host}/v2/{subject.repository}/blobs/{digest}" for digest in subject.digests]
        return sum(_program([*words, "-o", f"layer-{number}", url]) for number, url in enumerate(urls))

    return pull


def versions(*packages: str) -> dict[str, str]:
    """Debian's of each package, with the year of that upstream version."""
    return {package: debian.edition(package) or "of PATH" for package in packages}


def compete(
    figures: Figures,
    row: str,
    subject: Subject,
    sides: Mapping[str, Side],
    rounds: int,
    folder: Path,
    unkept: Collection[str] = (),
) -> None:
    """All of them take turns. Each starts with the source in the page cache, nothing left to be written, and an empty folder, which
    holds all bytes afterwards but for those sides that keep nothing."""
    for who in turns(list(sides), rounds):
        at = folder / "turn"
        at.mkdir()
        try:
            warm(subject.blobs)
            os.sync()
            figures.add(row, who, sides[who](at))
            assert who in unkept or bytes_in(at) >= subject.size, f"{who}: not all of it is there"
        finally:
            shutil.rmtree(at)


def _program(command: list[str | Path]) -> float:
    words = [str(word) for word in command]
    return timed(
        lambda: _succeeded(subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT, check=False))
    )


def _succeeded(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, f"{ran.args}: {ran.stderr[-2000:] or ran.stdout[-2000:]}"
