"""Benches of lazy reading run: the smallest sizes, one round. Each prints its table, saves its rounds and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.readers import Piece, Readers, pieces_of, shares
from tests.lab import debian, needs, soci
from tests.lab.check import settled
from tests.lab.content import Generated
from tests.lab.soci import Soci, SociRegistry

_ROOT = Path(__file__).resolve().parents[2]
_KIB = 1 << 10


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where a bench makes its folders: a short path, since sockets are in it. Nothing may be there when it has ended."""
    try:
        debian.docker_registry(), debian.containerd(), debian.runc(), debian.real_model()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    made = Path(tempfile.mkdtemp(prefix="mv-"))
    try:
        if missing := needs.missing_for_lazy(made):
            pytest.skip(missing)
        with settled(made):
            yield made
        assert list(made.iterdir()) == []
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.mark.system
@pytest.mark.parametrize(
    ("bench", "words", "columns", "goals"),
    [
        ("lazy", ["--without-soci"], ["pull", "pull + read"], 2),
        ("demand", [], ["no yielding", "in turn", "alone + 20 ms"], 4),
        ("reading", [], ["plain file", "idle"], 13),
        ("headers", ["--without-soci"], [], 2),
    ],
)
def test_runs(temporary: Path, tmp_path: Path, bench: str, words: list[str], columns: list[str], goals: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.{bench}", "--small", "--rounds", "1", "--save", tmp_path, *words],
        cwd=_ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said[0].startswith("machine: ")
    assert any(line.split() == ["modelvold", *" ratio ".join([*columns, ""]).split()] for line in said), ran.stdout
    assert sum(line.startswith("goal ") and line.endswith(("met", "MISSED")) for line in said) == goals, ran.stdout
    saved = json.loads((tmp_path / f"{bench}-small.json").read_text())
    assert saved["rows"]
    assert all(value >= 0 for row in saved["rows"].values() for values in row.values() for value in values)


@pytest.mark.system
def test_soci_reads_what_was_pushed(temporary: Path) -> None:
    if missing := soci.missing():
        pytest.skip(missing)
    content = Generated(6 << 20, 1)
    folder = temporary / "soci"
    with settled(soci.HOME):
        with SociRegistry(folder / "registry") as registry:
            image = registry.push_image("lab/model", {"model.bin": content}, folder / "index")
            registry.forget()
            with Soci(folder / "running", registry) as running:
                here = running.show(image, folder / "running/here")
                with Readers(1) as readers:
                    readers.sweep([[Piece(str(here / "model.bin"), 0, content.size)]], is_mapped=False)
                assert (here / "model.bin").read_bytes() == content.at(0, content.size)
            spans = [request for request in registry.blob_requests() if request.status == 206]
        assert sum(request.bytes for request in spans) >= content.size, "it was unpacked, not read lazily"
        shutil.rmtree(folder)
    assert not soci.HOME.exists()


def test_readers_read_all_of_it(tmp_path: Path) -> None:
    content = Generated(100 * _KIB + 7, 1)
    (tmp_path / "a").write_bytes(content.at(0, content.size))
    with Readers(3) as readers:
        for is_mapped in (False, True):
            swept = readers.sweep(shares(pieces_of([tmp_path / "a"]), 3), is_mapped=is_mapped, passes=2)
            assert swept.bytes == 2 * content.size
            assert swept.began <= swept.ended
        with pytest.raises(OSError, match="ends at"):
            readers.sweep([[Piece(str(tmp_path / "a"), 0, content.size + 1)]], is_mapped=False)


def test_shares_are_files_or_stretches_of_them() -> None:
    files = [Piece(name, 0, 10) for name in "abcd"]
    assert shares(files, 2) == [[files[0], files[2]], [files[1], files[3]]]
    assert shares([Piece("a", 5, 10)], 3) == [[Piece("a", 5, 4)], [Piece("a", 9, 4)], [Piece("a", 13, 2)]]
