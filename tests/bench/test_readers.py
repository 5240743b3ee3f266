"""What benches of reading rest on: the readers, and SOCI beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.readers import Piece, Readers, pieces_of, shares
from tests.lab import soci
from tests.lab.check import settled
from tests.lab.content import Generated
from tests.lab.soci import Soci, SociRegistry

_KIB = 1 << 10


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
