"""New contents: what is asked of the disk and the catalog for them, and what stays of them when there is no room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from modelvold import points
from modelvold.errors import Exhausted
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.points import Point
from modelvold.store import segment_files
from modelvold.store.catalog import NewContent
from modelvold.store.content import folder_of
from modelvold.store.store import Store

from tests.store.keeping import SOURCE, extents

_SEGMENTS = 200


def _new(name: bytes) -> NewContent:
    return NewContent(Digest.of(name), Reading.RAW, SOURCE, _SEGMENTS * 512, extents(_SEGMENTS * 512, 512))


def _folder(root: Path, new: NewContent) -> Path:
    return folder_of(root, new.digest, new.reading, new.source)


def _noting(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, notes: list[str]) -> None:
    call: Callable[..., object] = getattr(owner, name)

    def noted(*arguments: object, **named: object) -> object:
        notes.append(name)
        return call(*arguments, **named)

    monkeypatch.setattr(owner, name, noted)


def test_all_contents_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        heard: list[Point] = []
        monkeypatch.setattr(points, "at", heard.append)
        contents = store.add([_new(b"a"), _new(b"b"), _new(b"c")])
        assert heard == [
            Point.STORE_FILES_MADE,
            Point.CATALOG_BEGUN,
            Point.CATALOG_COMMITTED,
            Point.STORE_CONTENT_ADDED,
        ]
        assert [row.id for row in store.catalog.contents()] == [content.id for content in contents]
        for content in contents:
            rows = store.catalog.segments(content.id)
            assert [(row.number, row.extent) for row in rows] == [(s.number, s.extent) for s in content.segments]


def test_one_system_call_a_file_and_one_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of thousands of files are made while somebody waits for a mount. All names are there before the first sync, so that a
    journal has them in one commit."""
    with Store(tmp_path) as store:
        calls: list[str] = []
        for name in ("mknod", "open", "stat", "fstat", "lstat"):
            _noting(monkeypatch, os, name, calls)
        _noting(monkeypatch, segment_files, "sync_folder", calls)
        contents = store.add([_new(b"a"), _new(b"b")])
        monkeypatch.undo()
        assert calls.count("mknod") == 2 * _SEGMENTS
        assert calls.index("sync_folder") > len(calls) - 1 - calls[::-1].index("mknod")
        folders = {above for one in contents for above in (one.folder(), *one.folder().parents)}
        assert calls.count("sync_folder") == sum(folder.is_relative_to(tmp_path / "content") for folder in folders)
        assert len(calls) - 2 * _SEGMENTS < 30
        for content in contents:
            assert [segment.inode for segment in content.segments] == [s.path.stat().st_ino for s in content.segments]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of none of them: neither the folder in which there was no room, nor the one before."""
    with Store(tmp_path) as store:
        new = [_new(b"a"), _new(b"b")]
        make, made = os.mknod, []

        def full(name: str, mode: int, *, dir_fd: int) -> None:
            made.append(name)
            if len(made) > _SEGMENTS + 10:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make(name, mode, dir_fd=dir_fd)

        monkeypatch.setattr(os, "mknod", full)
        with pytest.raises(Exhausted, match=f"while making {2 * _SEGMENTS} segments"):
            store.add(new)
        monkeypatch.undo()
        assert not any(_folder(tmp_path, one).exists() for one in new)
        assert (store.contents(), store.catalog.contents()) == ([], [])
        assert len(store.add(new)) == 2


def test_what_a_removal_could_not_take_away(tmp_path: Path) -> None:
    """Its files are not taken for new ones."""
    new = _new(b"a")
    with Store(tmp_path) as store:
        _folder(tmp_path, new).mkdir(parents=True)
        (_folder(tmp_path, new) / "00003").write_bytes(bytes(512))
        (content,) = store.add([new])
        assert {segment.path.stat().st_size for segment in content.segments} == {0}


def test_a_start_looks_once_at_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = _new(b"a")
    with Store(tmp_path) as store:
        store.add([new])
    (_folder(tmp_path, new) / "00007").unlink()
    calls: list[str] = []
    for name in ("open", "stat", "mknod"):
        _noting(monkeypatch, os, name, calls)
    with Store(tmp_path) as store:
        monkeypatch.undo()
        (content,) = store.contents()
        assert calls.count("mknod") == 1
        assert calls.count("open") < 30
        assert calls.count("stat") < _SEGMENTS + 60
        assert [segment.inode for segment in content.segments] == [s.path.stat().st_ino for s in content.segments]
