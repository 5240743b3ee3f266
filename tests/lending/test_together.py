"""What happens when several ask, remove or end at once, and what an end in the middle leaves behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelvold.errors import NotYet, Refused, Unsupported
from modelvold.layer.toc import Toc
from modelvold.lending.report import Progress
from modelvold.oci.digest import Digest

from tests.fakes.registry import FakeRegistry
from tests.lending.desk import Desk, cleared, desk
from tests.property.layers import Raw, Sample, packed

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]

TAR = packed([Sample("a.bin", 900_000, 1), Sample("b.bin", 3_000_000, 2)])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    with cleared(tmp_path) as registry:
        yield registry


def _at_once(*works: Callable[[], object]) -> list[BaseException]:
    """Does all of them at the same time; what they raised."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def _pull(here: Desk, tag: str = "v1") -> list[Progress]:
    return list(here.lending.pull(here.reference.replace(":v1", f":{tag}"), lambda: False))


def _names(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["complete", "directory"])
def test_one_model_asked_for_by_many(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """It is opened once, and everybody gets it."""
    with desk(tmp_path, registry, kind) as here:
        here.put(TAR, Raw(Sample("c.bin", 100_000, 3)))
        places = [tmp_path / f"at-{n}" for n in range(3)]
        assert _at_once(lambda: _pull(here), *(lambda place=place: here.mount(place) for place in places)) == []
        assert all(_names(place) == {"a.bin": 900_000, "b.bin": 3_000_000, "c.bin": 100_000} for place in places)
        asked = [request.range for request in registry.requests_for(Digest.of(TAR.content))]
        assert len([each for each in asked if each.startswith("bytes=0-")]) == 1


@pytest.mark.parametrize("kind", ["complete", "directory"])
def test_two_new_models_with_one_layer(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    with desk(tmp_path, registry, kind) as here:
        here.put(TAR, Raw(Sample("c.bin", 10, 3)))
        here.put(TAR, Raw(Sample("d.bin", 10, 4)), tag="v2")
        two = here.reference.replace(":v1", ":v2")
        assert _at_once(lambda: here.mount(tmp_path / "one"), lambda: here.mount(tmp_path / "two", two)) == []
        assert _names(tmp_path / "one").keys() == {"a.bin", "b.bin", "c.bin"}
        assert _names(tmp_path / "two").keys() == {"a.bin", "b.bin", "d.bin"}
        assert len(here.store.contents()) == 3
        for place in ("one", "two"):
            assert (tmp_path / place / "b.bin").read_bytes() == Sample("", 3_000_000, 2).content


def test_only_a_contents_own_headers_show_it(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that holds one model's headers back until another one has brought the same layer, and then forges them."""
    forged = packed([Sample("forged.bin", 900_000, 1), Sample("b.bin", 3_000_000, 2)])
    with desk(tmp_path, registry, "complete") as here:
        here.put(TAR)
        here.mount(tmp_path / "one")
        here.put(TAR, Raw(Sample("c.bin", 10, 3)), tag="v2")
        read = here.lending._opener._read_tocs

        def held_back(*arguments: object) -> list[Toc]:
            own = read(*arguments)  # type: ignore[arg-type]
            return [forged.toc, *own[1:]]

        monkeypatch.setattr(here.lending._opener, "_read_tocs", held_back)
        here.mount(tmp_path / "two", here.reference.replace(":v1", ":v2"))
        assert _names(tmp_path / "two").keys() == {"a.bin", "b.bin", "c.bin"}


def test_nobody_gets_what_is_being_removed(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk(tmp_path, registry, "complete") as here:
        digest = here.put(TAR)
        volume = here.open(digest, 20)
        check = here.lending._check_unused
        asked: list[BaseException] = []

        def checked(row: object) -> None:
            asked.extend(_at_once(lambda: here.lending._openings.row(volume), lambda: here.open(digest, 1)))
            check(row)  # type: ignore[arg-type]

        monkeypatch.setattr(here.lending, "_check_unused", checked)
        here.lending.remove(here.reference)
        assert [type(error) for error in asked] == [NotYet, NotYet]
        monkeypatch.undo()
        assert here.store.contents() == []
        assert here.table.mounted() == []
        here.mount(tmp_path / "at")
        assert _names(tmp_path / "at").keys() == {"a.bin", "b.bin"}


def test_what_an_end_in_the_middle_leaves_is_swept(tmp_path: Path, registry: FakeRegistry) -> None:
    """Contents that no volume names, and images without a volume: nobody could name them to `rm`."""
    with desk(tmp_path, registry, "complete") as here:
        here.put(TAR)
        _pull(here)
        (row,) = here.lending.find(None)
        with here.store.database.write() as cursor:
            cursor.execute("DELETE FROM volume WHERE id = ?", (row.id,))
    with desk(tmp_path, registry, "complete") as here:
        assert here.store.contents() == []
        files = [path for part in ("content", "volumes") for path in (here.store.root / part).rglob("*")]
        assert [path for path in files if path.is_file()] == []
        _pull(here)
        assert here.store.used() >= len(TAR.content)


def test_verified_means_that_it_is_here(tmp_path: Path, registry: FakeRegistry) -> None:
    """A state that says more than the records is not believed: what comes next is verified."""
    with desk(tmp_path, registry, "complete") as here:
        here.put(TAR)
        _pull(here)
        (content,) = here.store.contents()
        here.store.catalog.unrecord((content.id, segment.number) for segment in content.segments)
        here.store.catalog.set_state(content.id, "verified")
    with desk(tmp_path, registry, "complete") as here:
        (content,) = here.store.contents()
        assert (content.state, content.present) == ("unverified", 0)
        _pull(here)
        assert content.is_verified


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path, registry: FakeRegistry) -> None:
    """A path that EROFS shows and this file system cannot hold below the store; `rm` frees every byte."""
    deep = "/".join(["d" * 250] * 16)[:4090]
    with desk(tmp_path, registry, "directory") as here:
        here.put(packed([Sample("first.bin", 2_000_000, 5), Sample(deep, 10, 6)]))
        with pytest.raises(Unsupported, match="File name too long"):
            here.mount(tmp_path / "at")
        assert not [path for path in (here.store.root / "volumes").iterdir() if path.is_dir()]
        here.lending.remove(here.reference)
        assert [path for path in (here.store.root / "content").rglob("*") if path.is_file()] == []


def test_segments_that_are_still_read_are_not_emptied(tmp_path: Path, registry: FakeRegistry) -> None:
    """A pod of a daemon with another backend goes on reading; the directory is refused, and says by what."""
    with desk(tmp_path, registry, "complete") as here:
        here.put(TAR)
        here.mount(tmp_path / "at")
    with desk(tmp_path, registry, "directory") as here:
        with pytest.raises(Refused, match=f"still read through the EROFS mount at {tmp_path}/at"):
            here.open(here.lending.find(None)[0].manifest, 20)
        assert (tmp_path / "at/b.bin").read_bytes() == Sample("", 3_000_000, 2).content
        here.lending.unmount(tmp_path / "at")
        (tmp_path / "two").mkdir()
        here.mount(tmp_path / "two")
        assert (tmp_path / "two/b.bin").read_bytes() == Sample("", 3_000_000, 2).content


def test_what_is_ready_waits_for_nobody(tmp_path: Path, registry: FakeRegistry) -> None:
    """Behind as many slow models as are completed at once."""
    with desk(tmp_path, registry, "complete") as here:
        digest = here.put(TAR)
        volume = here.open(digest, 20)
        here.lending.unmount_unused(set())
        registry.behaviour.rate = 10_000
        slow = [here.put(Raw(Sample(f"{n}.bin", 400_000, 50 + n)), tag=f"slow-{n}") for n in range(17)]
        for other in slow:
            with pytest.raises(NotYet):
                here.open(other, 0.2)
        assert _names(here.lending.mounted(volume)).keys() == {"a.bin", "b.bin"}
