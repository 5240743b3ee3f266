"""A pull's end is noticed when it comes, not when it is next looked for; what was here before is told first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.errors import Mismatch
from modelvold.lending import pulls

from tests.fakes.registry import FakeRegistry
from tests.lending.desk import cleared, desk
from tests.property.layers import Raw, Sample

_LAYERS = [Raw(Sample("a.bin", 3_000_000, 1)), Raw(Sample("b.bin", 100_000, 2))]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    with cleared(tmp_path) as registry:
        yield registry


@pytest.fixture(autouse=True)
def _nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day between two looks: what ends a pull now is what the store tells."""
    monkeypatch.setattr(pulls, "LOOK", 86400.0)


def test_the_end_is_noticed_when_it_comes(tmp_path: Path, registry: FakeRegistry) -> None:
    with desk(tmp_path, registry, "directory", links=True) as here:
        here.put(*_LAYERS)
        first, *_, last = here.lending.pull(here.reference, lambda: False)
        assert (first.present, first.done) == (0, False)
        assert (last.present, last.verified, last.done) == (last.size, last.size, True)
        assert last.eta == 0


def test_what_was_here_before_is_told_first(tmp_path: Path, registry: FakeRegistry) -> None:
    with desk(tmp_path, registry, "directory", links=True) as here:
        here.put(*_LAYERS)
        assert [step.done for step in here.lending.pull(here.reference, lambda: False)][-1]
        (only,) = here.lending.pull(here.reference, lambda: False)
        assert (only.present, only.done) == (only.size, True)


def test_so_is_a_quarantine(tmp_path: Path, registry: FakeRegistry) -> None:
    with desk(tmp_path, registry, "directory", links=True) as here:
        here.put(*_LAYERS)
        registry.behaviour.corrupt = True
        with pytest.raises(Mismatch):
            list(here.lending.pull(here.reference, lambda: False))


def test_several_wait_for_one(tmp_path: Path, registry: FakeRegistry) -> None:
    with desk(tmp_path, registry, "directory", links=True) as here:
        here.put(*_LAYERS)
        ended: list[bool] = []

        def pull() -> None:
            *_, last = here.lending.pull(here.reference, lambda: False)
            ended.append(last.done)

        threads = [threading.Thread(target=pull, name=f"pull-{n}") for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == [True] * 3
