"""What several threads do to one model: the parts of the remote protocol that no single call shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from modelvold.errors import AlreadyExists, NotYet
from modelvold.snapshot import models
from modelvold.snapshot.snapshotter import Snapshotter
from modelvold.store.database import Database

from tests.lab.snapshots import Pull, Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "volumes")


@pytest.fixture
def pull(shelf: Shelf) -> Pull:
    return shelf.give("registry.example/a/model")


@pytest.fixture
def snapshotter(tmp_path: Path, shelf: Shelf) -> Iterator[Snapshotter]:
    database = Database(tmp_path / "catalog.db")
    yield Snapshotter(tmp_path, database, shelf, shelf)
    database.close()


def _until_followed(snapshotter: Snapshotter, target: str) -> None:
    """Waits until somebody waits for the flight of `target`."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        flight = snapshotter._models._flights.get(target)
        if flight is not None and flight._condition._waiters:
            return
        time.sleep(0.001)
    pytest.fail("nobody waits")


def test_those_who_wait_hear_the_same_refusal(snapshotter: Snapshotter, shelf: Shelf, pull: Pull) -> None:
    go = threading.Event()

    def opening() -> None:
        assert go.wait(60)
        raise NotYet("model: 3 of 4 layers looked at", "it will be tried again")

    shelf.opening = opening
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(snapshotter.prepare, f"e{n}", "", pull.labels) for n in range(2)]
        _until_followed(snapshotter, pull.target)
        go.set()
        errors = [call.exception(60) for call in calls]
    assert {str(error) for error in errors} == {"model: 3 of 4 layers looked at; it will be tried again"}
    assert {type(error) for error in errors} == {NotYet}
    assert errors[0] is not errors[1]
    assert len(shelf.opened) == 1
    shelf.opening = lambda: None
    with pytest.raises(AlreadyExists):
        snapshotter.prepare("e3", "", pull.labels)


def test_nobody_waits_for_ever(
    snapshotter: Snapshotter, shelf: Shelf, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LONGEST_WAIT", 0.01)
    arrived, go = threading.Event(), threading.Event()

    def opening() -> None:
        arrived.set()
        assert go.wait(60)

    shelf.opening = opening
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(snapshotter.prepare, "e1", "", pull.labels)
        try:
            assert arrived.wait(60)
            with pytest.raises(NotYet, match="still being opened"):
                snapshotter.prepare("e2", "", pull.labels)
        finally:
            go.set()
        assert isinstance(first.exception(60), AlreadyExists)


def test_nothing_is_unmounted_between_mounting_and_recording(
    snapshotter: Snapshotter, shelf: Shelf, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, go, mounted = threading.Event(), threading.Event(), shelf.mounted

    def slowly(volume_id: str) -> Path:
        arrived.set()
        assert go.wait(60)
        return mounted(volume_id)

    monkeypatch.setattr(shelf, "mounted", slowly)
    with ThreadPoolExecutor(2) as callers:
        preparing = callers.submit(snapshotter.prepare, "e", "", pull.labels)
        assert arrived.wait(60)
        cleaning = callers.submit(snapshotter.cleanup)
        try:
            with pytest.raises(TimeoutError):
                cleaning.result(0.2)
        finally:
            go.set()
        assert isinstance(preparing.exception(60), AlreadyExists)
        cleaning.result(60)
    assert shelf.unmounted == [{pull.original.hex}]
