"""The store: what it trusts after a restart, and in which order things become true."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from modelvold.errors import Mismatch, Refused
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.catalog import NewContent
from modelvold.store.content import folder_of
from modelvold.store.store import Store

from tests.lab.program import wait_until
from tests.store.keeping import SOURCE, Notes, add, fill, fill_all, wait_for_state

DATA = os.urandom(4 * 4096 + 100)
DIGEST = Digest.of(DATA)


def _held(root: Path) -> None:
    """A store with DATA in it, verified, five segments; closed."""
    with Store(root) as store:
        content = add(store, DATA, 4096)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """One writer for a store: the second daemon does not get past the door, and gets in when the first is gone."""
    program = "import sys; from pathlib import Path; from modelvold.store.store import Store\nwith Store(Path(sys.argv[1])): print('in')"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with Store(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert second.returncode != 0
        assert "another modelvold holds it" in second.stderr
        with pytest.raises(Refused), Store(tmp_path):
            pass
    assert subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout == "in\n"


def test_from_missing_to_verified(tmp_path: Path) -> None:
    """Grown, durable, verified, in this order; then the content lies in the shared place under the same inodes."""
    with Store(tmp_path) as store:
        notes = Notes(store)
        store.watch(notes)
        content = add(store, DATA, 4096)
        assert [segment.path.stat().st_size for segment in content.segments] == [0] * 5
        inodes = [segment.inode for segment in content.segments]
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert wait_until(lambda: notes.told.count(("durable", 4)) == 1, 5)
        assert sorted(notes.told) == sorted((what, n) for what in ("grown", "durable") for n in range(5))
        assert store.find(DIGEST, Reading.RAW, "") is content
        assert store.find(DIGEST, Reading.RAW, SOURCE) is None
        assert content.folder() == folder_of(tmp_path, DIGEST, Reading.RAW, "")
        assert [segment.path.stat().st_ino for segment in content.segments] == inodes
        assert store.catalog.has_answered(content.id, SOURCE)
        assert (content.present, content.durable, content.verified) == (len(DATA),) * 3


def test_a_restart_trusts_recorded_segments_of_the_right_length(tmp_path: Path) -> None:
    """Longer, shorter or gone: the segment is missing again and the content no longer verified; the others are kept."""
    _held(tmp_path)
    folder = folder_of(tmp_path, DIGEST, Reading.RAW, "")
    os.truncate(folder / "00001", 4095)
    os.truncate(folder / "00002", 8192)
    (folder / "00003").unlink()
    with Store(tmp_path) as store:
        (content,) = store.contents()
        assert [segment.present for segment in content.segments] == [4096, 0, 0, 0, 512]
        assert [segment.durable for segment in content.segments] == [True, False, False, False, True]
        assert [segment.path.stat().st_size for segment in content.segments] == [4096, 0, 0, 0, 512]
        assert [row.fingerprint is None for row in store.catalog.segments(content.id)] == [
            False,
            True,
            True,
            True,
            False,
        ]
        assert (content.state, store.catalog.contents()[0].state) == ("unverified", "unverified")
        for number in (1, 2, 3):
            fill(store, content.segments[number], DATA)
        wait_for_state(content, "verified")


def test_a_restart_drops_what_was_not_recorded(tmp_path: Path) -> None:
    """A full segment without its record, and a part of one, are truncated: nobody knows that they reached the disk."""
    with Store(tmp_path) as store:
        content = add(store, DATA, 4096)
        fill(store, content.segments[0], DATA)
        assert wait_until(lambda: content.segments[0].durable, 5)
        fill(store, content.segments[1], DATA, 1000)
        content.segments[2].path.write_bytes(DATA[8192:12288])
    with Store(tmp_path) as store:
        (content,) = store.contents()
        assert [segment.path.stat().st_size for segment in content.segments] == [4096, 0, 0, 0, 0]
        assert [segment.durable for segment in content.segments] == [True, False, False, False, False]


def test_folders_of_nobody_are_swept(tmp_path: Path) -> None:
    """A content folder that the catalog does not name is a crash's remainder."""
    _held(tmp_path)
    orphan = folder_of(tmp_path, Digest.of(b"orphan"), Reading.RAW, SOURCE)
    orphan.mkdir(parents=True)
    (orphan / "00000").write_bytes(bytes(512))
    with Store(tmp_path) as store:
        assert not orphan.exists()
        assert [content.state for content in store.contents()] == ["verified"]


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_crash_in_the_move_to_the_shared_place(tmp_path: Path, is_moved: bool) -> None:
    """Cut after any of its steps, no byte is lost and none need be fetched again."""
    _held(tmp_path)
    shared = folder_of(tmp_path, DIGEST, Reading.RAW, "")
    own = folder_of(tmp_path, DIGEST, Reading.RAW, SOURCE)
    with Store(tmp_path) as store, store.database.write() as cursor:
        cursor.execute("UPDATE content SET source = ?", (SOURCE,))
        cursor.execute("DELETE FROM answered")
    if not is_moved:
        own.parent.mkdir(parents=True, exist_ok=True)
        shared.rename(own)
    with Store(tmp_path) as store:
        (content,) = store.contents()
        assert (content.durable, content.state) == (len(DATA), "verified")
        assert content.folder() == (shared if is_moved else own)
        assert content.folder().is_dir()
        assert store.catalog.has_answered(content.id, SOURCE) is is_moved


def test_the_same_content_from_two_sources(tmp_path: Path) -> None:
    """The second stays where it is, verified; should its folder be lost, the store starts all the same and holds it as missing."""
    _held(tmp_path)
    with Store(tmp_path) as store:
        second = add(store, DATA, 4096, source="127.0.0.1:1/other/one")
        fill_all(store, second, DATA)
        wait_for_state(second, "verified")
        assert second.source
        own = second.folder()
    shutil.rmtree(own)
    with Store(tmp_path) as store:
        assert [content.durable for content in store.contents()] == [len(DATA), 0]
        assert [content.state for content in store.contents()] == ["verified", "unverified"]


def test_wrong_bytes_are_quarantined(tmp_path: Path) -> None:
    """Withdrawn in order: the record goes, watchers are told, then the file is truncated. A restart keeps it in quarantine."""
    wrong = bytes([DATA[0] ^ 1]) + DATA[1:]
    with Store(tmp_path) as store:
        notes = Notes(store)
        store.watch(notes)
        content = add(store, DATA, 4096)
        fill_all(store, content, wrong)
        wait_for_state(content, "quarantined")
        assert wait_until(lambda: not content.present, 5)
        assert notes.at_withdrawal == [(None, 4096)] * 4 + [(None, 512)]
        assert wait_until(lambda: bool(notes.failures), 10)
        assert isinstance(notes.failures[0], Mismatch)
        order = [what for what, number in notes.told if number == 0]
        assert order == ["grown", "durable", "leaving", "missing", "failed"]
        assert store.find(DIGEST, Reading.RAW, "") is None
    with Store(tmp_path) as store:
        (content,) = store.contents()
        assert (content.state, content.present, content.source) == ("quarantined", 0, SOURCE)
        assert "sha256:" in content.reason


def test_removed_is_gone(tmp_path: Path) -> None:
    """Its bytes, its rows and its name; the same content may come again."""
    with Store(tmp_path) as store:
        content = add(store, DATA, 4096)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert store.remove(content) == 4 * 4096 + 512
        assert (store.contents(), store.catalog.contents(), store.used()) == ([], [], 0)
        assert not content.folder().exists()
        again = add(store, DATA, 4096)
        assert again.id != content.id, "a late record of the removed one would be taken for this one's"
        fill_all(store, again, DATA)
        wait_for_state(again, "verified")


def test_no_folder_outlives_the_last_content_in_it(tmp_path: Path) -> None:
    """Neither the source's, when it was shared, nor the shared one, when it is removed."""
    with Store(tmp_path) as store:
        first, second = add(store, DATA, 4096), add(store, DATA[1:], 4096)
        folders = {path.parent for path in (first.folder(), second.folder())}
        fill_all(store, first, DATA)
        wait_for_state(first, "verified")
        assert [path.exists() for path in sorted(folders)] == [
            path == second.folder().parent for path in sorted(folders)
        ]
        assert store.remove(first) > 0
        assert not first.folder().parent.exists()
        assert second.folder().exists()
        store.remove(second)
        assert list((tmp_path / "content").iterdir()) == []


def test_a_content_of_no_bytes_is_verified_at_once(tmp_path: Path) -> None:
    """Nothing need come for it."""
    with Store(tmp_path) as store:
        wait_for_state(store.add([NewContent(Digest.of(b""), Reading.RAW, SOURCE, 0, ())])[0], "verified")
