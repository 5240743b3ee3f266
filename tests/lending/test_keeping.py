"""What stays and what goes, at the desk: pins, leases, models that nobody uses, and what an operator has read again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.errors import InUse, NotFound
from modelvold.store.room import Lease

from tests.fakes.registry import FakeRegistry
from tests.lab.program import wait_until
from tests.lending.desk import Desk, cleared, desk
from tests.property.layers import Raw, Sample

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
SHARED = Raw(Sample("shared.bin", 200_000, 1))
OTHER = Raw(Sample("other.bin", 100_000, 2))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    with cleared(tmp_path) as registry:
        yield registry


def _pull(here: Desk, tag: str, *layers: Raw) -> str:
    here.put(*layers, tag=tag)
    reference = f"{here.registry.address}/models/tiny:{tag}"
    *_, last = here.lending.pull(reference, lambda: False)
    assert last.done
    return reference


def test_leases_are_the_strongest_of_all_who_have_it(tmp_path: Path, registry: FakeRegistry) -> None:
    """A backend that cannot fetch again holds what it shows; a pin holds; one content of two models has the stronger lease."""
    with desk(tmp_path, registry, "complete") as here:
        first, second = _pull(here, "a", SHARED), _pull(here, "b", SHARED, OTHER)
        shared, other = here.lending.find(second)[0].contents
        assert set(here.lending.keeping.leases().values()) == {Lease.NONE}
        here.lending.pin(first)
        assert dict(here.lending.keeping.leases()) == {shared: Lease.HELD, other: Lease.NONE}
        here.lending.unpin(first)
        here.mount(tmp_path / "mnt", second)
        assert dict(here.lending.keeping.leases()) == {shared: Lease.HELD, other: Lease.HELD}
        here.lending.unmount(tmp_path / "mnt")
        assert set(here.lending.keeping.leases().values()) == {Lease.NONE}
        with pytest.raises(NotFound):
            here.lending.pin(f"{registry.address}/models/none:v1")


def test_collecting_forgets_what_nobody_uses_and_nobody_pinned(tmp_path: Path, registry: FakeRegistry) -> None:
    """A dry run says just what would go: what two models share is counted once, with the last of them."""
    with desk(tmp_path, registry, "complete") as here:
        first, second, third = _pull(here, "a", SHARED), _pull(here, "b", SHARED, OTHER), _pull(here, "c", OTHER)
        here.lending.pin(third)
        would = here.lending.collect(dry_run=True)
        assert {each.reference for each in would} == {first, second}
        assert sum(each.bytes for each in would) == 200_000, "the other's is pinned with the third"
        assert len(here.lending.find(None)) == 3
        with pytest.raises(InUse, match="pinned"):
            here.lending.remove(third)
        before = here.store.used()
        assert here.lending.collect(dry_run=False) == would
        assert before - here.store.used() >= 200_000
        assert [row.reference for row in here.lending.find(None)] == [third]
        here.lending.unpin(third)
        here.mount(tmp_path / "mnt", third)
        assert here.lending.collect(dry_run=False) == []
        here.lending.unmount(tmp_path / "mnt")
        assert [each.reference for each in here.lending.collect(dry_run=False)] == [third]
        assert here.store.used() == 0


def test_what_is_kept_for_a_while_goes_after_it(tmp_path: Path, registry: FakeRegistry) -> None:
    """`[store] keep`: by its last use, which is written down; a pinned one stays."""
    with desk(tmp_path, registry, "complete") as here:
        first, second, third = _pull(here, "a", SHARED), _pull(here, "b", OTHER), _pull(here, "c", SHARED, OTHER)
        here.lending.pin(second)
        ids = [here.lending.find(reference)[0].id for reference in (first, second)]
        here.lending.used(ids, 1_000_000_000)
        here.lending.keeping._keep = 3600.0
        here.lending.keeping._look_at_use()
        assert {row.reference for row in here.lending.find(None)} == {second, third}
    with desk(tmp_path, registry, "complete") as here:
        [row] = here.lending.find(second)
        assert (row.used, row.is_pinned) == (1_000_000_000, True)


def test_what_has_rotted_is_found_and_fetched_again(tmp_path: Path, registry: FakeRegistry) -> None:
    """Reading again says how many are wrong, and takes them out of service; to repair is to have them right at the end."""
    with desk(tmp_path, registry, "complete") as here:
        reference = _pull(here, "a", SHARED, OTHER)
        segments = [segment for content in here.store.contents() for segment in content.segments]
        for repair in (False, True):
            *_, last = here.lending.verify(None, repair=False, cancelled=lambda: False)
            assert (last.wrong, last.done, last.read) == (0, True, 300_000)
            path = segments[0].path
            path.write_bytes(bytes(path.stat().st_size))
            *_, last = here.lending.verify(reference, repair=repair, cancelled=lambda: False)
            assert (last.wrong, last.repaired, last.done) == (1, int(repair), True)
            assert segments[0].durable == repair
            if not repair:
                _pull(here, "a", SHARED, OTHER)
        assert wait_until(lambda: all(content.is_verified for content in here.store.contents()), 10)
        assert here.store.wrong_segments == 2


def test_what_is_pinned_stays_mounted(tmp_path: Path, registry: FakeRegistry) -> None:
    with desk(tmp_path, registry, "complete") as here:
        pinned, other = (here.lending.find(_pull(here, tag, layer))[0] for tag, layer in (("a", SHARED), ("b", OTHER)))
        here.lending.pin(pinned.reference)
        paths = [here.lending.mounted(row.id) for row in (pinned, other)]
        here.lending.unmount_unused(set())
        assert [path.is_mount() for path in paths] == [True, False]
        here.lending.unpin(pinned.reference)
        here.lending.unmount_unused({pinned.id})
        assert paths[0].is_mount()
        here.lending.unmount_unused(set())
        assert not paths[0].is_mount()


def test_at_an_end_it_is_told_who_will_miss_something(
    tmp_path: Path, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with desk(tmp_path, registry, "complete") as here, caplog.at_level(logging.INFO):
        used, _ = _pull(here, "a", SHARED), _pull(here, "b", OTHER)
        here.mount(tmp_path / "mnt", used)
        here.lending.keeping.tell_what_stays()
        (told,) = [record for record in caplog.records if record.message.startswith("leave ")]
        assert told.levelno == logging.INFO
        assert used in told.message
        assert f"folder {tmp_path / 'mnt'}" in told.message
        (content,) = here.lending.contents(here.lending.find(used)[0])
        here.store.withdraw(content.segments[:1])
        here.lending.keeping.tell_what_stays()
        assert caplog.records[-1].levelno == logging.WARNING
        assert "reads of what is missing fail until modelvold runs again" in caplog.records[-1].message
        here.lending.unmount(tmp_path / "mnt")
