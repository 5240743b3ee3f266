"""From a reference to a volume: what is asked of the registry for it, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from modelvold.errors import Malformed
from modelvold.oci.digest import Digest
from modelvold.store.store import Store

from tests.fakes.registry import FakeRegistry
from tests.lab import documents
from tests.lending.desk import REPOSITORY, Desk, cleared, desk
from tests.property.layers import Raw, Sample, Tar, packed

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]

SMALL = packed([Sample("config.json", 300, 1), Sample("sub/vocab.txt", 5000, 2)])


@dataclass(frozen=True)
class Annotated:
    """A tar whose annotation says something else than the lab's would."""

    tar: Tar
    path: str
    is_tar: bool = True
    mode: int = 0
    mtime: int = 0

    @property
    def content(self) -> bytes:
        return self.tar.content


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    with cleared(tmp_path) as registry:
        yield registry


@pytest.fixture
def here(tmp_path: Path, registry: FakeRegistry) -> Iterator[Desk]:
    with desk(tmp_path, registry, "complete") as made:
        yield made


def _blob_requests(registry: FakeRegistry, digest: Digest) -> list[tuple[str, str]]:
    return [(request.method, request.range) for request in registry.requests_for(digest)]


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_small_tar_is_here_when_its_headers_are(here: Desk, registry: FakeRegistry, tmp_path: Path) -> None:
    """What was read to find its files is not read again."""
    here.put(SMALL)
    here.mount(tmp_path / "at")
    assert _names(tmp_path / "at") == {"config.json", "sub/vocab.txt"}
    size = len(SMALL.content)
    assert _blob_requests(registry, Digest.of(SMALL.content)) == [("GET", f"bytes=0-{size - 1}")]


def test_headers_are_read_once(here: Desk, registry: FakeRegistry, tmp_path: Path) -> None:
    """Another model with the same layer finds them in the catalog, in this daemon's life and in the next."""
    here.put(SMALL)
    here.mount(tmp_path / "at")
    registry.requests.clear()
    here.put(SMALL, Raw(Sample("more.bin", 10, 3)), tag="v2")
    here.mount(tmp_path / "two", here.reference.replace(":v1", ":v2"))
    assert _names(tmp_path / "two") == {"config.json", "sub/vocab.txt", "more.bin"}
    assert [method for method, _ in _blob_requests(registry, Digest.of(SMALL.content))] in ([], ["HEAD"])


def test_the_only_file_of_a_tar_is_where_its_annotation_says(here: Desk, tmp_path: Path) -> None:
    """AIKit packs it under its bare name."""
    here.put(Annotated(packed([Sample("b.bin", 700, 4)]), "deep/er/b.bin"), SMALL)
    here.mount(tmp_path / "at")
    assert _names(tmp_path / "at") == {"deep/er/b.bin", "config.json", "sub/vocab.txt"}


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Annotated(packed([Sample("a.bin", 700, 5)]), "b.bin"), "by its annotation the tar holds 'b.bin'"),
        (Annotated(packed([Sample("x/a.bin", 700, 5), ]), "y"), "its only file is 'x/a.bin'"),
    ],
    ids=["another name", "another folder"],
)  # fmt: skip
def test_a_header_that_contradicts_the_annotation(here: Desk, tmp_path: Path, layer: Annotated, said: str) -> None:
    here.put(layer)
    with pytest.raises(Malformed, match=said) as failure:
        here.mount(tmp_path / "at")
    assert "repack" in failure.value.remedy
    _check_nothing(here.store)


def test_two_layers_of_one_blob(here: Desk, tmp_path: Path) -> None:
    """Two files, one content; what the second says of its size must be so."""
    first, second = Raw(Sample("a.bin", 700, 7)), Raw(Sample("b.bin", 700, 7))
    assert first.content == second.content
    here.put(first, second)
    here.mount(tmp_path / "at")
    assert _names(tmp_path / "at") == {"a.bin", "b.bin"}
    (row,) = here.lending.rows()
    assert len(set(row.contents)) == len(here.store.contents()) == 1
    assert (tmp_path / "at/a.bin").read_bytes() == (tmp_path / "at/b.bin").read_bytes() == first.content


def test_two_layers_with_one_path(here: Desk, tmp_path: Path) -> None:
    here.put(SMALL, Raw(Sample("config.json", 5, 6)))
    with pytest.raises(Malformed, match=r"both claim the path 'config\.json'"):
        here.mount(tmp_path / "at")
    _check_nothing(here.store)


@pytest.mark.parametrize("form", ["tar+gzip", "tar+zstd"])
def test_compressed_layers_are_refused_by_name(here: Desk, registry: FakeRegistry, tmp_path: Path, form: str) -> None:
    digest, size = str(registry.put_blob(b"x" * 100)), 100
    layer: dict[str, Any] = documents.tar_layer("a.bin", digest, size)
    layer["mediaType"] = f"application/vnd.cncf.model.weight.v1.{form}"
    config = documents.model_config([layer])
    pointer = {"digest": str(registry.put_blob(config)), "size": len(config)}
    registry.put_manifest(REPOSITORY, "v1", documents.to_json(documents.model_manifest(pointer, [layer])))
    with pytest.raises(Malformed, match=f"v1.{form}".replace("+", r"\+")):
        here.mount(tmp_path / "at")
    assert _blob_requests(registry, Digest.parse(digest)) == []


def test_a_tar_that_is_cut_short_names_its_member(here: Desk, registry: FakeRegistry, tmp_path: Path) -> None:
    whole = SMALL.content
    cut = registry.put_blob(whole[:4096])
    layer = documents.tar_layer("", str(cut), 4096)
    config = documents.model_config([layer])
    pointer = {"digest": str(registry.put_blob(config)), "size": len(config)}
    registry.put_manifest(REPOSITORY, "v1", documents.to_json(documents.model_manifest(pointer, [layer])))
    with pytest.raises(Malformed, match=r"'sub/vocab\.txt'"):
        here.mount(tmp_path / "at")
    _check_nothing(here.store)


def test_times_and_modes_come_from_the_tar(here: Desk, tmp_path: Path) -> None:
    sample = replace(Sample("a.bin", 10, 7), mode=0o640, mtime=1_700_000_000_123_456_789, uid=7, gid=8)
    here.put(packed([sample]))
    here.mount(tmp_path / "at")
    seen = (tmp_path / "at/a.bin").stat()
    assert (seen.st_mode & 0o7777, seen.st_mtime_ns, seen.st_uid, seen.st_gid) == (0o640, sample.mtime, 7, 8)


def _check_nothing(store: Store) -> None:
    """No content, no image, no row."""
    assert store.contents() == []
    assert store.catalog.volumes() == []
    assert [path for part in ("content", "volumes") for path in (store.root / part).rglob("*") if path.is_file()] == []
