"""Contents as whole files: one copy at any moment, and after a crash at any step each byte in one recorded place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from modelvold.errors import Exhausted, Failing
from modelvold.layer.extent import CHUNK, ContentOffset, Extent
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store import whole
from modelvold.store.content import Content
from modelvold.store.segment import Segment
from modelvold.store.store import Store
from modelvold.store.whole import Piece, pieces

from tests.store.keeping import add, fill_all, wait_for_state

DATA = os.urandom(3 * CHUNK + 700)
SEGMENTS = 4
#: As of a tar: headers in front, between and behind.
FILES = (
    Extent(ContentOffset(512), ContentOffset(1000)),
    Extent(ContentOffset(1536), ContentOffset(2 * CHUNK + 5)),
    Extent(ContentOffset(2 * CHUNK + 512), ContentOffset(3 * CHUNK + 100)),
)


class Crash(BaseException):
    """The process ended here."""


def held(store: Store) -> Content:
    content = add(store, DATA)
    fill_all(store, content, DATA)
    wait_for_state(content, "verified")
    return content


def found(store: Store) -> Content:
    content = store.find(Digest.of(DATA), Reading.RAW, "")
    assert content is not None
    return content


def on_disk(content: Content) -> int:
    return sum(path.stat().st_size for path in content.folder().rglob("*") if path.is_file())


def check_whole(content: Content, files: Sequence[Extent] = FILES) -> None:
    assert content.is_whole
    assert content.is_durable
    assert (content.present, content.durable, content.state) == (len(DATA), len(DATA), "verified")
    assert [segment.path.stat().st_size for segment in content.segments] == [0] * SEGMENTS
    for number, file in enumerate(files):
        assert content.whole(number).read_bytes() == DATA[file.start : file.end]


def test_pieces_of_every_segment() -> None:
    assert list(pieces(Extent(ContentOffset(0), ContentOffset(CHUNK)), FILES)) == [
        Piece(0, 512, 0, 488),
        Piece(1, 1536, 0, CHUNK - 1536),
    ]
    assert list(pieces(Extent(ContentOffset(CHUNK), ContentOffset(2 * CHUNK)), FILES)) == [
        Piece(1, 0, CHUNK - 1536, CHUNK)
    ]
    assert list(pieces(Extent(ContentOffset(2 * CHUNK), ContentOffset(3 * CHUNK)), FILES)) == [
        Piece(1, 0, 2 * CHUNK - 1536, 5),
        Piece(2, 512, 0, CHUNK - 512),
    ]
    assert list(pieces(Extent(ContentOffset(3 * CHUNK + 512), ContentOffset(len(DATA))), FILES)) == []
    assert list(pieces(Extent(ContentOffset(0), ContentOffset(CHUNK)), ())) == []


def test_made_whole_and_found_so_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = held(store)
        store.make_whole(content, FILES)
        check_whole(content)
        assert on_disk(content) == sum(file.length for file in FILES)
        store.make_whole(content, FILES)
    with Store(tmp_path) as store:
        check_whole(found(store))
        assert store.remove(found(store)) == sum(segment.padded for segment in content.segments)
        assert [path for path in (tmp_path / "content").rglob("*") if path.is_file()] == []


def test_at_most_one_segment_lies_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    with Store(tmp_path) as store:
        content = held(store)
        empty = Segment.empty

        def seen(segment: Segment) -> None:
            sizes.append(on_disk(content))
            empty(segment)
            sizes.append(on_disk(content))

        monkeypatch.setattr(Segment, "empty", seen)
        store.make_whole(content, FILES)
    assert len(sizes) == 2 * SEGMENTS
    assert max(sizes) <= len(DATA) + 512 + CHUNK


@pytest.mark.parametrize("number", range(SEGMENTS))
@pytest.mark.parametrize("step", ["copied", "recorded", "emptied"])
def test_a_crash_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str) -> None:
    """The next daemon finds all bytes, and goes on from there."""

    def crashing(real: Callable[..., None], is_before: bool) -> Callable[..., None]:
        calls = 0

        def call(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if is_before and calls == number + 1:
                raise Crash
            real(*arguments)
            if calls == number + 1:
                raise Crash

        return call

    with pytest.raises(Crash), Store(tmp_path) as store:  # noqa: PT012 - it crashes where it is told to
        content = held(store)
        if step == "emptied":
            monkeypatch.setattr(Segment, "empty", crashing(Segment.empty, is_before=False))
        else:
            record = crashing(store.catalog.record_moved, is_before=step == "copied")
            monkeypatch.setattr(store.catalog, "record_moved", record)
        store.make_whole(content, FILES)
    monkeypatch.undo()
    with Store(tmp_path) as store:
        content = found(store)
        assert content.is_durable
        assert content.is_verified
        assert sum(segment.moved for segment in content.segments) == (number if step == "copied" else number + 1)
        store.make_whole(content, FILES)
        check_whole(content)


def test_whole_files_that_are_gone_make_all_of_it_missing(tmp_path: Path) -> None:
    """Nothing is served as present that is not there."""
    with Store(tmp_path) as store:
        content = held(store)
        store.make_whole(content, FILES)
        content.whole(1).unlink()
        with pytest.raises(Failing, match="are gone"):
            store.make_whole(content, FILES)
        assert content.present == 0
        assert not content.whole(0).exists()
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.make_whole(content, FILES)
        check_whole(content)
    for path in content.whole(0).parent.iterdir():
        path.unlink()
    content.whole(0).parent.rmdir()
    with Store(tmp_path) as store:
        assert found(store).present == 0
        assert found(store).state == "unverified"


def test_a_segment_lost_in_the_middle_takes_the_rest_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No digest can be taken of what lies partly in files: all of it is fetched again."""
    with pytest.raises(Crash), Store(tmp_path) as store:  # noqa: PT012 - it crashes where it is told to
        content = held(store)

        def crash(*_: object) -> None:
            raise Crash

        monkeypatch.setattr(Segment, "empty", crash)
        store.make_whole(content, FILES)
    monkeypatch.undo()
    os.truncate(content.segments[2].path, 100)
    with Store(tmp_path) as store:
        content = found(store)
        assert (content.present, content.state) == (0, "unverified")
        assert not content.whole(0).parent.exists()


def test_withdrawing_one_segment_withdraws_all_that_moved(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = held(store)
        store.make_whole(content, FILES)
        store.withdraw(content.segments[:1])
        assert content.present == 0
        assert on_disk(content) == 0
        assert content.state == "unverified"
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        store.make_whole(content, FILES)
        store.withdraw_moved()
        assert content.present == 0
    with Store(tmp_path) as store:
        assert found(store).present == 0


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        content = held(store)
        copy = whole.copy

        def full(source: int, target: int, start: int, at: int, length: int) -> None:
            if length == CHUNK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            copy(source, target, start, at, length)

        monkeypatch.setattr(whole, "copy", full)
        with pytest.raises(Exhausted, match="No space left"):
            store.make_whole(content, FILES)
        assert content.is_durable
        assert store.failing is None
        monkeypatch.undo()
        store.make_whole(content, FILES)
        check_whole(content)


def test_a_failed_sync_makes_the_store_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied may be gone: the segments keep the bytes."""
    with Store(tmp_path) as store:
        content = held(store)

        def broken(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(whole, "sync_filesystem", broken)
        with pytest.raises(Failing, match="syncfs"):
            store.make_whole(content, FILES)
        assert store.failing is not None
        assert [segment.moved for segment in content.segments] == [False] * SEGMENTS
        assert content.is_durable
    with Store(tmp_path) as store:
        assert found(store).is_verified


def test_copying_where_blocks_cannot_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    with Store(tmp_path) as store:
        content = held(store)
        store.make_whole(content, FILES)
        check_whole(content)
