"""Volumes without containerd: mounted by `modelvold mount`, read by programs, taken away again. Over every backend."""

from __future__ import annotations

import json
import os
import random
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.lab import debian, needs
from tests.lab.backends import Backend
from tests.lab.check import settled
from tests.lab.content import Content, Generated, files_of, size_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.reader import Reader, check, random_pieces
from tests.lab.registry import Registry
from tests.property.layers import Sample, packed
from tests.property.seen import Seen, look
from tests.property.trees import Specimen, random_tree, trees

pytestmark = pytest.mark.system

_TENSORS = """
import hashlib, json, sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="np") as model:
    print(json.dumps({name: hashlib.sha256(model.get_tensor(name).tobytes()).hexdigest() for name in model.keys()}))
"""


@dataclass(frozen=True, slots=True)
class Stage:
    registry: Registry
    daemon: Daemon
    here: Path
    backend: Backend

    def cli(self, *words: str | Path) -> str:
        ran = self.daemon.cli(*words)
        assert ran.returncode == 0, f"modelvold {words[0]}: {ran.stderr}\n{self.daemon.log_text()[-3000:]}"
        return ran.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("status", "--json"))
        return found

    def held(self) -> list[str]:
        """What is in the store of contents and images, and mounted for volumes and at `here`."""
        files = [str(path) for part in ("content", "volumes") for path in (self.daemon.root / part).rglob("*")]
        mounts = [mount.point for mount in (*mounted(self.daemon.run / "volumes"), *mounted(self.here))]
        return [file for file in files if Path(file).is_file()] + mounts


@pytest.fixture(scope="module")
def stage(backend: Backend) -> Iterator[Stage]:
    """One registry and one daemon with prefetch off."""
    folder = needs.lazy_folder()
    try:
        if reason := needs.missing_for_lazy(folder):
            pytest.skip(reason)
        with staged(folder, backend) as running:
            yield running
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=False)


@contextmanager
def staged(folder: Path, backend: Backend) -> Iterator[Stage]:
    here = folder / "mnt"
    here.mkdir()
    with settled(folder):
        with (
            Registry(folder / "registry") as registry,
            Daemon(folder / "daemon", {"fetch": {"prefetch": False}, "mount": backend.setting}) as daemon,
        ):
            try:
                yield Stage(registry, daemon, here, backend)
            finally:
                # Only after a failure: else every test has unmounted what it mounted.
                unmount_below(here)
        # Only the private mount of the store outlives a daemon that holds no volume.
        assert [left for left in daemon.leftovers if "/volumes/" in left] == []


def test_a_real_model_is_read_mapped_and_opened_by_safetensors(stage: Stage) -> None:
    """`mount` without containerd shows the real model, however it is read; `umount` and `rm` leave nothing."""
    model = debian.real_model()
    reference = f"{stage.registry.host}/models/real:v1"
    stage.cli("pack", model, "-t", reference, "--push")
    stage.registry.forget()
    stage.cli("mount", reference, stage.here)
    files = files_of(model)
    whole = sum(size_of(content) for content in files.values())
    assert {path: seen.size for path, seen in files_in(stage.here).items()} == {
        path: size_of(content) for path, content in files.items()
    }
    check_fetched(stage, 0 if stage.backend.is_lazy else whole)
    assert stage.status()["volumes"][0]["size"] == whole
    weights = "model.safetensors"
    assert tensors(stage.here / weights) == tensors(model / weights)
    compare(stage.here, files, random.Random(3))
    check_fetched(stage, whole)
    with pytest.raises(OSError, match="Read-only file system"):
        (stage.here / "new").touch()

    stage.cli("umount", stage.here)
    assert stage.held() != []
    stage.cli("rm", reference)
    assert stage.held() == []
    assert stage.status()["volumes"] == []


def test_every_boundary_cold_in_random_order(stage: Stage) -> None:
    """Odd names, nested folders and sizes around 512, chunks, segments and 64 MiB, read and mapped cold and in random order,
    equal their source; each layer crosses the wire once; fsck.erofs finds the image sound.
    """
    specimen = random_tree(4, files=24)
    files: dict[str, Content] = {sample.path: sample.content for sample in specimen.samples()}
    files |= {"deep/er/large.safetensors": Generated((64 << 20) + 513, 41), "é" * 127: Generated((16 << 20) + 7, 42)}
    pushed = stage.registry.push.model(files, "models/boundaries")
    stage.registry.forget()
    events = stage.status()["node"]["events"]
    stage.cli("mount", pushed.reference, stage.here)
    assert {path: seen.size for path, seen in files_in(stage.here).items()} == {
        path: size_of(content) for path, content in files.items()
    }
    check_fetched(stage, 0 if stage.backend.is_lazy else pushed.size)

    compare(stage.here, files, random.Random(4), pieces=6)
    assert (stage.status()["node"]["events"] > events) == stage.backend.is_lazy
    served = {digest: stage.registry.bytes_of(digest) for digest in pushed.layers.values()}
    assert served == {pushed.layers[path]: size_of(content) for path, content in files.items()}
    check_fsck(stage, [(digest, "raw") for digest in pushed.layers.values()], files)
    check_disk(stage, pushed.size)
    stage.cli("umount", stage.here)
    stage.cli("rm", pushed.reference)
    assert stage.held() == []


def test_every_boundary_inside_a_tar(stage: Stage) -> None:
    """The same in one archive: its headers are fetched to show it, then each byte once."""
    samples = random_tree(5, files=24).samples()
    large = Sample("deep/er/large.safetensors", (64 << 20) + 513, 51)
    specimen = Specimen((packed([*samples, large]),))
    pushed = stage.registry.push.layers(specimen.layers, "models/archive")
    stage.registry.forget()
    stage.cli("mount", pushed.reference, stage.here)
    assert as_shown(stage) == specimen.shown()
    if stage.backend.is_lazy:
        assert stage.registry.bytes_of(pushed.layers["0"]) < pushed.size / 4
    headers = headers_asked(stage)
    compare(stage.here, dict(specimen.contents()), random.Random(5), pieces=6)
    assert pushed.size <= stage.registry.bytes_of(pushed.layers["0"]) <= pushed.size + headers
    check_fsck(stage, [(pushed.layers["0"], "tar")], dict(specimen.contents()))
    check_disk(stage, pushed.size)
    stage.cli("umount", stage.here)
    stage.cli("rm", pushed.reference)
    assert stage.held() == []


_NUMBERS = count()


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[*HealthCheck],
)
@given(specimen=trees(large=False))
def test_a_random_tree(stage: Stage, specimen: Specimen) -> None:
    """As a property: any tree, of raw layers, tars or both, comes through registry, daemon and kernel as it was, and goes
    again."""
    files: dict[str, Content] = dict(specimen.contents())
    pushed = stage.registry.push.layers(specimen.layers, f"models/random-{next(_NUMBERS)}")
    stage.cli("mount", pushed.reference, stage.here)
    try:
        assert as_shown(stage) == specimen.shown()
        if files:
            compare(stage.here, files, random.Random(len(files)))
        forms = [(pushed.layers[str(n)], "tar" if layer.is_tar else "raw") for n, layer in enumerate(specimen.layers)]
        check_fsck(stage, forms, files)
    finally:
        stage.cli("umount", stage.here)
        stage.cli("rm", pushed.reference)
    assert stage.held() == []


def files_in(folder: Path) -> dict[str, Seen]:
    return {path: seen for path, seen in look(folder).items() if stat.S_ISREG(seen.kind)}


def as_shown(stage: Stage) -> dict[str, Seen]:
    """What is seen in the volume, less the names that the backend adds to files which have bytes."""
    extra = stage.backend.extra_links
    return {
        path: replace(seen, nlink=seen.nlink - extra) if stat.S_ISREG(seen.kind) and seen.size else seen
        for path, seen in look(stage.here).items()
    }


def check_fetched(stage: Stage, count: int) -> None:
    """By the registry's own log, and by status."""
    assert sum(request.bytes for request in stage.registry.blob_requests()) == count
    assert stage.status()["volumes"][0]["present"] == count


def check_disk(stage: Stage, size: int) -> None:
    """One copy: with all that a store holds beside it, at most 1.05 times the model."""
    ran = subprocess.run(["du", "-s", "-B1", stage.daemon.root], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[0]) <= 1.05 * size


def headers_asked(stage: Stage) -> int:
    """Bytes that were asked for to find the last tar's headers, by the daemon's log: 256 KiB for each request."""
    return (256 << 10) * int(
        re.findall(r"read headers layer=\S+ bytes=\d+ requests=(\d+)", stage.daemon.log_text())[-1]
    )


def compare(folder: Path, files: Mapping[str, Content], order: random.Random, pieces: int = 3) -> None:
    """Reads every byte of every file, in pieces and in random order, by read and mapped."""
    contents = list(files.values())
    wanted = random_pieces(order, [size_of(content) for content in contents], pieces)
    with Reader([folder / path for path in files]) as reader:
        right, denied = check(wanted, reader.read(wanted), lambda n, at, length: part(contents[n], at, length))
    assert denied == []
    assert {piece.file for piece in right} == set(range(len(contents)))
    assert any(piece.is_mapped for piece in right) or not any(size_of(content) for content in contents)


def part(content: Content, at: int, length: int) -> bytes:
    if isinstance(content, Generated):
        return content.at(at, length)
    if isinstance(content, Path):
        with content.open("rb") as file:
            return os.pread(file.fileno(), length, at)
    return content[at : at + length]


def check_fsck(stage: Stage, layers: Sequence[tuple[str, str]], files: Mapping[str, Content]) -> None:
    """A current fsck.erofs, given the segments as devices, finds nothing wrong and extracts the source."""
    if not stage.backend.is_erofs:
        return
    [image] = (stage.daemon.root / "volumes").glob("*.erofs")
    # The same bytes twice are one content, and its segments are devices twice.
    devices = [segment for digest, form in layers for segment in segments(stage, digest, form)]
    extracted = stage.here.parent / "extracted"
    words = [*debian.fsck_erofs(), "-d3", f"--extract={extracted}", "--no-preserve"]
    ran = subprocess.run(
        [*words, *(f"--device={device}" for device in devices), image], capture_output=True, text=True, check=False
    )
    try:
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert "<W>" not in ran.stderr, ran.stderr[-2000:]
        for path, content in files.items():
            assert (extracted / path).stat().st_size == size_of(content), path
            assert (extracted / path).read_bytes() == part(content, 0, size_of(content)), path
    finally:
        subprocess.run(["rm", "-rf", extracted], check=False)


def segments(stage: Stage, digest: str, form: str) -> list[Path]:
    name = f"{digest.removeprefix('sha256:')}.{form}"
    return sorted(path for path in (stage.daemon.root / "content").rglob(f"{name}/*") if path.is_file())


def tensors(path: Path) -> dict[str, str]:
    """Every tensor's digest, as safetensors gives it, in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", _TENSORS, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout)
    assert len(found) > 50
    return found
