"""What a start trusts: what is recorded; more where the kernel went on asking, less where the disk forgets."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest
from modelvold.errors import Failing
from modelvold.store.scrub import Pace
from modelvold.store.segment import Segment
from modelvold.store.store import Store

from tests.lab.program import wait_until
from tests.store.keeping import add, fill, fill_all, wait_for_state

SIZE = 4096
DATA = os.urandom(4 * SIZE)


def _left(root: Path) -> None:
    """A store whose daemon died with segment 0 recorded, 1 complete and in no record, 2 begun, 3 missing."""
    with Store(root) as store:
        content = add(store, DATA, SIZE)
        fill(store, content.segments[0], DATA)
        fill(store, content.segments[1], DATA)
        fill(store, content.segments[2], DATA, 100)
        assert wait_until(lambda: content.segments[0].durable and content.segments[1].durable, 10)
    with sqlite3.connect(root / "catalog.db") as catalog:
        catalog.execute("UPDATE segment SET fingerprint = NULL WHERE number = 1")
    catalog.close()


def test_only_what_is_recorded_is_trusted(tmp_path: Path) -> None:
    _left(tmp_path)
    with Store(tmp_path) as store:
        [content] = store.contents()
        assert [segment.present for segment in content.segments] == [SIZE, 0, 0, 0]
        assert [segment.path.stat().st_size for segment in content.segments] == [SIZE, 0, 0, 0]


def test_where_the_kernel_went_on_asking_all_is_kept(tmp_path: Path) -> None:
    """It is synced and recorded, the begun one goes on from where it was, and the sums are those of all of it."""
    _left(tmp_path)
    with Store(tmp_path, is_continued=True) as store:
        [content] = store.contents()
        assert [segment.present for segment in content.segments] == [SIZE, SIZE, 100, 0]
        assert wait_until(lambda: content.segments[1].durable, 10)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
    with Store(tmp_path) as store:
        assert [segment.durable for content in store.contents() for segment in content.segments] == [True] * 4
        [content] = store.contents()
        assert [looked.is_right for looked in store.scrub(content, Pace(1 << 40, time.sleep))] == [True] * 4


def test_what_cannot_be_synced_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _left(tmp_path)

    def refused(_segment: Segment) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Segment, "resume", refused)
    with pytest.raises(Failing, match="mend the disk"), Store(tmp_path, is_continued=True):
        pass


def test_without_a_journal_another_boot_trusts_nothing(tmp_path: Path) -> None:
    """There a power cut may give the blocks of what was synced to others, later, too: no sum taken at the start would tell."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.catalog.begin_life("another boot")
        lacks_journal = store.lacks_journal
    with Store(tmp_path) as store:
        [content] = store.contents()
        assert content.present == (0 if lacks_journal else 4 * SIZE)
        assert content.is_verified == (not lacks_journal)
        fill_all(store, content, DATA) if lacks_journal else None
        wait_for_state(content, "verified")
    with Store(tmp_path) as store:
        assert store.contents()[0].present == 4 * SIZE, "the same boot"
