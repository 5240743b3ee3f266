"""Bytes that go while they are read: no reader notices, but by waiting."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fault.tally import Tally
from tests.lab.backends import FUSE, LAZY, Backend
from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Settings
from tests.lab.reader import Piece, Reader
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

_MIB = 1 << 20
_FILES = {f"model-{n}.safetensors": Generated(32 * _MIB + 513 * n, 200 + n) for n in range(4)}
_CONTENTS = list(_FILES.values())
_OTHER = {f"other-{n}.bin": Generated(24 * _MIB, 300 + n) for n in range(4)}
_SIZE = sum(content.size for content in _CONTENTS)
_READERS = 8


def _source(file: int, at: int, length: int) -> bytes:
    return _CONTENTS[file].at(at, length)


def _status(daemon: Daemon) -> dict[str, Any]:
    ran = daemon.cli("status", "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _cli(daemon: Daemon, *words: str | Path) -> None:
    ran = daemon.cli(*words)
    assert ran.returncode == 0, f"{words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"


def _pieces(seed: int) -> list[Piece]:
    """Something of everywhere, mapped, in an order of the reader's own."""
    order = random.Random(seed)
    pieces = [
        Piece(n, at, min(_MIB, content.size - at), is_mapped=True)
        for n, content in enumerate(_CONTENTS)
        for at in range(0, content.size, 4 * _MIB)
    ]
    order.shuffle(pieces)
    return pieces


def _forget_pages(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("backend", [LAZY, FUSE], ids=str)
def test_half_a_model_is_evicted_under_eight_mapped_readers(folder: Path, tally: Tally, backend: Backend) -> None:
    """Must-show 2: complete, the daemon restarted, freshly mounted. The segments were complete when EROFS opened them, and are
    evicted all the same; whoever reads them waits until they are fetched again, and nobody gets an error.

    By FUSE the model is mounted before it is complete: whoever comes afterwards is shown it by EROFS, where nothing may be missing."""
    here, there = folder / "mnt", folder / "other"
    here.mkdir()
    there.mkdir()
    with Registry(folder / "registry") as registry:
        model, other = registry.push.model(_FILES), registry.push.model(_OTHER, "models/other")
        settings: Settings = {
            "fetch": {"prefetch": False},
            "store": {"quota": f"{_SIZE + 8 * _MIB} B", "reserve": ""},
            "mount": backend.setting,
        }
        with Daemon(folder / "daemon", settings) as daemon:
            if backend is FUSE:
                _cli(daemon, "mount", model.reference, here)
                _cli(daemon, "pull", model.reference)
            else:
                _cli(daemon, "pull", model.reference)
                daemon.restart()
                tally.restart()
                _cli(daemon, "mount", model.reference, here)
            assert _status(daemon)["volumes"][0]["state"] == "verified"
            paths = [here / path for path in _FILES]
            readers = [Reader(paths) for _ in range(_READERS)]
            denied: list[Piece] = []
            ending = threading.Event()

            def go_on(reader: Reader, seed: int) -> None:
                while not ending.is_set():
                    _forget_pages(paths)
                    pieces = _pieces(seed)
                    denied.extend(tally.read(pieces, reader.read(pieces), _source)[1])
                    seed += _READERS

            try:
                for reader in readers:
                    reader.__enter__()
                threads = [threading.Thread(target=go_on, args=(r, n)) for n, r in enumerate(readers)]
                for thread in threads:
                    thread.start()
                _cli(daemon, "mount", other.reference, there)
                for name, content in _OTHER.items():
                    with (there / name).open("rb") as file:
                        tally.compare(file.read(), content.at(0, content.size), name)
                evicted = _status(daemon)["node"]["evicted"]
            finally:
                ending.set()
                for thread in threads:
                    thread.join(120)
                for reader in readers:
                    reader.__exit__(None, None, None)
            assert evicted >= _SIZE / 2
            assert denied == [], "no EIO, no SIGBUS"
            assert _status(daemon)["node"]["reads_denied"] == 0
            assert {volume["state"] for volume in _status(daemon)["volumes"]} <= {"verified", "lazy", "streaming"}
            assert {volume["backend"] for volume in _status(daemon)["volumes"]} == {backend.name}
            for at in (here, there):
                _cli(daemon, "umount", at)


def test_pinned_and_mounted_models_stay(folder: Path, tally: Tally) -> None:
    """What nobody uses goes for a pull; a pinned model stays, and so does one that is mounted: a pull evicts nothing in use, and says
    what to do."""
    here = folder / "mnt"
    here.mkdir()
    with Registry(folder / "registry") as registry:
        first, second, third = (
            registry.push.model({"a.bin": Generated(20 * _MIB, seed)}, f"models/m{seed}") for seed in (1, 2, 3)
        )
        settings = {"fetch": {"prefetch": False}, "store": {"quota": "44 MiB", "reserve": ""}}
        with Daemon(folder / "daemon", settings) as daemon:
            _cli(daemon, "pull", first.reference)
            _cli(daemon, "pin", first.reference)
            _cli(daemon, "pull", second.reference)
            _cli(daemon, "pull", third.reference)
            present = {volume["reference"]: volume["present"] for volume in _status(daemon)["volumes"]}
            assert present[first.reference] == first.size
            assert present[third.reference] == third.size
            assert present[second.reference] < second.size
            _cli(daemon, "mount", third.reference, here)
            refused = daemon.cli("pull", second.reference)
            assert refused.returncode == 1
            assert "no room" in refused.stderr
            assert "modelvold gc" in refused.stderr
            assert {v["reference"]: v["present"] for v in _status(daemon)["volumes"]}[third.reference] == third.size
            refused = daemon.cli("rm", first.reference)
            assert refused.returncode == 1
            assert "pinned" in refused.stderr
            _cli(daemon, "unpin", first.reference)
            listed = daemon.cli("gc", "--dry-run")
            assert first.reference in listed.stdout
            assert third.reference not in listed.stdout
            assert len(_status(daemon)["volumes"]) == 3
            _cli(daemon, "gc")
            assert [volume["reference"] for volume in _status(daemon)["volumes"]] == [third.reference]
            _cli(daemon, "umount", here)
            _cli(daemon, "pull", second.reference)
            tally.fault()
