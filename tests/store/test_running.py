"""The running digest: each byte hashed as it came or read back, whatever the order; and no verdict but that of the bytes there are."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.errors import Exhausted, Refused
from modelvold.layer.extent import ContentOffset, Extent
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store import running, verification, withdrawal
from modelvold.store.catalog import ContentRow
from modelvold.store.content import Content
from modelvold.store.running import RunningDigest
from modelvold.store.segment import Segment, Writer
from modelvold.store.store import Store
from modelvold.store.verification import Hashed

from tests.lab.program import wait_until
from tests.store.keeping import SOURCE, Notes, add, fill, fill_all, wait_for_state

SIZE = 8192
DATA = os.urandom(4 * SIZE)


def append(store: Store, segment: Segment, data: bytes, *sizes: int) -> None:
    """Its next bytes of the content `data`, in pieces of these sizes."""
    with store.writing(segment) as writer:
        for size in sizes:
            at = segment.extent.start + segment.filled
            piece = memoryview(data[at : min(at + size, segment.extent.end)])
            writer.append(piece)
            store.on_appended(writer, piece)


def settled(store: Store, content: Content, hashed: Hashed) -> bool:
    """Whether so much was hashed by now, and the content is not due."""
    return wait_until(lambda: store.hashed == hashed and not store.is_verifying(content), 10)


@contextmanager
def busy(store: Store, content: Content) -> Iterator[RunningDigest]:
    """Somebody is at the content's running digest."""
    digest, _ = store._verification._running_of(content)
    with digest._lock:
        yield digest


# -- what is hashed how


def test_one_connection_in_order_reads_nothing_back(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        sync, at_sync = store._durability.sync, []

        def synced(writer: Writer) -> None:
            at_sync.append(store.hashed.followed)
            sync(writer)

        store._durability.sync = synced  # type: ignore[method-assign]
        for segment in content.segments:
            append(store, segment, DATA, 1, 511, 3000, SIZE)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(followed=len(DATA))
        assert at_sync == [SIZE, 2 * SIZE, 3 * SIZE, 4 * SIZE], "nobody else need hash what is durable"


def test_what_came_out_of_order_is_read_back(tmp_path: Path) -> None:
    """And nothing else."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for number in (2, 1):
            fill(store, content.segments[number], DATA)
            assert settled(store, content, Hashed())
        fill(store, content.segments[0], DATA)
        assert settled(store, content, Hashed(SIZE, 2 * SIZE))
        fill(store, content.segments[3], DATA)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(followed=2 * SIZE, read_back=2 * SIZE)


def test_it_is_followed_again_once_it_has_caught_up(tmp_path: Path) -> None:
    """Within a segment that was begun by another connection."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        append(store, content.segments[1], DATA, 1000, 2000)
        fill(store, content.segments[0], DATA)
        assert settled(store, content, Hashed(SIZE, 3000))
        append(store, content.segments[1], DATA, SIZE)
        fill(store, content.segments[2], DATA)
        fill(store, content.segments[3], DATA)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(len(DATA) - 3000, 3000)


def test_what_a_full_disk_cut_short_is_read_back(tmp_path: Path) -> None:
    """Appended, and told to nobody."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        with store.writing(content.segments[0]) as writer:
            writer.append(memoryview(DATA[:700]))
        fill(store, content.segments[0], DATA)
        assert settled(store, content, Hashed(0, SIZE))
        for segment in content.segments[1:]:
            fill(store, segment, DATA)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(3 * SIZE, SIZE)


def test_nobody_waits_for_who_hashes_and_nothing_is_forgotten(tmp_path: Path) -> None:
    """A transfer that finds somebody at the digest goes on at once; what it appended is read back without anybody's asking again."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        with busy(store, content):
            append(store, content.segments[0], DATA, 100)
            append(store, content.segments[0], DATA, 100)
            assert store.is_verifying(content)
        assert settled(store, content, Hashed(0, 200))
        append(store, content.segments[0], DATA, SIZE)
        assert store.hashed.followed == SIZE - 200
        assert wait_until(lambda: not store.is_verifying(content), 10)


def test_what_comes_while_a_thread_is_about_to_leave_is_hashed(tmp_path: Path) -> None:
    """It has seen that nothing is there, and will not look again by itself."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        left, going, go_on = threading.Event(), threading.Event(), store._verification._go_on

        def slow(*arguments: Any) -> bool:
            is_due = go_on(*arguments)
            left.set()
            going.wait(10)
            return is_due

        store._verification._go_on = slow  # type: ignore[assignment,method-assign]
        store._verification.submit(content)
        assert left.wait(10)
        with busy(store, content):
            fill(store, content.segments[0], DATA)
        going.set()
        assert settled(store, content, Hashed(0, SIZE))


def test_a_segment_that_is_sent_again_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its start, and followed from then on, without waiting for the end."""
    monkeypatch.setattr(withdrawal, "GRACE", 0.0)
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        append(store, content.segments[0], bytes(SIZE), 200)
        store._withdrawal.evict(content.segments[:1])
        append(store, content.segments[0], DATA, 100)
        assert settled(store, content, Hashed(200, 100))
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(200 + len(DATA) - 100, 100)


def test_a_content_that_nobody_fetches_costs_nothing(tmp_path: Path) -> None:
    """Also where a part of it was here at the start; once more comes, that part is read back once."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for number in (0, 1, 3):
            fill(store, content.segments[number], DATA)
        assert wait_until(lambda: sum(segment.durable for segment in content.segments) == 3, 10)
    with Store(tmp_path) as store:
        [content] = store.contents()
        assert not store.is_verifying(content)
        assert store._verification._running == {}
        append(store, content.segments[2], DATA, 100)
        assert settled(store, content, Hashed(0, 2 * SIZE + 100))
        append(store, content.segments[2], DATA, SIZE)
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(SIZE - 100, 3 * SIZE + 100)
        assert wait_until(lambda: store._verification._running == {}, 10), "nor does one that is verified"


def test_what_is_whole_at_the_start_is_read(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        store.check()
        content.state = "verified"  # nobody is to judge it yet
        fill_all(store, content, DATA)
        assert wait_until(lambda: content.is_durable, 10)
    with Store(tmp_path) as store:
        wait_for_state(store.contents()[0], "verified")
        assert store.hashed == Hashed(0, len(DATA))


def test_a_removed_content_leaves_no_digest(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        fill(store, content.segments[0], DATA)
        store.remove(content)
        assert store._verification._running == {}
        store._verification.submit(content)
        assert wait_until(lambda: not store.is_verifying(content), 10)
        assert store._verification._running == {}


# -- when it is judged


def test_hashed_and_not_durable_is_not_judged(tmp_path: Path) -> None:
    """It is when it is durable, without another pass."""
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        going, record = threading.Event(), store._durability._record

        def late(batch: Any) -> None:
            going.wait(10)
            record(batch)

        store._durability._record = late
        fill_all(store, content, DATA)
        assert store.hashed == Hashed(len(DATA), 0)
        assert (content.state, store.is_verifying(content)) == ("unverified", False)
        going.set()
        wait_for_state(content, "verified")
        assert store.hashed == Hashed(len(DATA), 0)


def test_a_judgement_that_a_full_disk_refuses_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another pass, and whoever pulls goes on waiting."""
    monkeypatch.setattr(verification, "_PAUSE", 0.05)
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        real, refused = store.catalog.set_state, threading.Event()

        def full(number: int, state: str, reason: str = "") -> None:
            if not refused.is_set():
                refused.set()
                raise Exhausted("no room", "make some")
            assert store.is_verifying(content)
            real(number, state, reason)

        monkeypatch.setattr(store.catalog, "set_state", full)
        fill_all(store, content, DATA)
        wait_for_state(content, "verified")
        assert refused.is_set()
        assert store.hashed == Hashed(len(DATA), 0)


def test_what_cannot_be_read_is_told_when_all_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that nobody waits for the digest, and what comes is served."""

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RunningDigest, "_read", broken)
    with Store(tmp_path) as store:
        store.watch(notes := Notes(store))
        content = add(store, DATA, SIZE)
        for number in (1, 0, 2):
            fill(store, content.segments[number], DATA)
        assert wait_until(lambda: not store.is_verifying(content), 10)
        assert notes.failures == []
        fill(store, content.segments[3], DATA)
        assert wait_until(lambda: bool(notes.failures), 10)
        assert "Input/output error" in notes.failures[0].message


def test_a_store_that_ends_reads_nothing_more(tmp_path: Path) -> None:
    """What is hashed is judged; the rest is hashed by the next daemon."""
    with Store(tmp_path) as store:
        hashed, other = add(store, DATA, SIZE), add(store, DATA[1:], SIZE)
        with busy(store, other):
            fill_all(store, other, DATA[1:])
            fill_all(store, hashed, DATA)
            store._verification._ending.set()
    assert (hashed.state, other.state) == ("verified", "unverified")
    with Store(tmp_path) as store:
        for content in store.contents():
            wait_for_state(content, "verified")


def test_many_contents_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_TURN", SIZE)
    with Store(tmp_path) as store:
        datas = [DATA[n:] for n in range(9)]
        contents = [add(store, data, SIZE) for data in datas]
        for number in reversed(range(4)):
            for content, data in zip(contents, datas, strict=True):
                fill(store, content.segments[number], data)
        for content in contents:
            wait_for_state(content, "verified")
        assert store.hashed == Hashed(9 * SIZE, sum(map(len, datas)) - 9 * SIZE)


def test_it_goes_back_no_further_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a copy of its state that lies before what has gone: one in every so many segments, and that of its own."""
    monkeypatch.setattr(running, "_STRIDE", 2)
    content = small(tmp_path, [512] * 7)
    files: dict[int, bytes] = {}
    for segment in content.segments:
        put(segment, os.urandom(512), files)
    digest = RunningDigest(content)
    assert read_all(digest) == 7 * 512
    for number, again in ((6, 1), (5, 3), (4, 3), (1, 7)):
        content.segments[number].truncate()
        files[number] = b""
        put(content.segments[number], os.urandom(512), files)
        assert digest.go_back()
        assert read_all(digest) == again * 512
        assert digest.found()[0] == sha256(b"".join(files[n] for n in range(7))).hexdigest()


# -- the verdict, whatever the order


def small(root: Path, lengths: Sequence[int]) -> Content:
    """A content by itself, its files empty or as they are."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    cut = [Extent(ContentOffset(start), ContentOffset(end)) for start, end in pairwise(bounds)]
    row = ContentRow(1, Digest.of(b"x"), Reading.RAW, SOURCE, bounds[-1], "unverified", "")
    content = Content(root, row, cut)
    content.folder().mkdir(parents=True, exist_ok=True)
    for segment in content.segments:
        segment.path.touch()
        if segment.path.stat().st_size:
            segment.resume()
    return content


def put(segment: Segment, piece: bytes, files: dict[int, bytes], digest: RunningDigest | None = None) -> None:
    """Appends what of it fits; `files` is what the segments hold."""
    if not (piece := piece[: segment.length - segment.filled]):
        return
    with segment.writer() as writer:
        writer.append(memoryview(piece))
        files[segment.number] = files.get(segment.number, b"") + piece
        if digest:
            digest.follow(writer, memoryview(piece))


def read_all(digest: RunningDigest) -> int:
    """As far as it comes; how many bytes it has read."""
    buffer, total = memoryview(bytearray(300)), 0
    while got := digest.read_on(buffer, lambda: False):
        total += got
    return total


LENGTHS = [700, 512, 1300, 1, 2048]
_STEP = st.one_of(
    st.tuples(st.sampled_from(["follow", "append"]), st.integers(0, 4), st.integers(1, 900)),
    st.tuples(st.sampled_from(["truncate", "read", "restart", "back"]), st.integers(0, 4), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(_STEP, max_size=40), stride=st.integers(1, 4))
def test_any_order_gives_the_digest_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], stride: int
) -> None:
    """Appended here and there, told or not, truncated and sent again with other bytes, read back now and then, started anew."""
    root = tmp_path_factory.mktemp("any")
    content = small(root, LENGTHS)
    files: dict[int, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_STRIDE", stride)
        digest = RunningDigest(content)
        for what, number, size in steps:
            segment = content.segments[number]
            if what in {"follow", "append"}:
                put(segment, os.urandom(size), files, digest if what == "follow" else None)
            elif what == "truncate":
                segment.truncate()
                files[number] = b""
            elif what == "read":
                digest.read_on(memoryview(bytearray(100)), lambda: False)
            elif what == "back":
                digest.go_back()
            else:
                content = small(root, LENGTHS)
                digest = RunningDigest(content)
        for segment in content.segments:
            put(segment, os.urandom(segment.length), files)
        while read_all(digest) or digest.go_back():
            pass
        assert digest.is_at_end
        assert not digest.is_behind
        found, stamp = digest.found()
        assert found == sha256(b"".join(files[n] for n in range(len(LENGTHS)))).hexdigest()
        for segment in content.segments:
            segment.durable = True
        assert stamp.holds


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)], ids=str)
@pytest.mark.parametrize("at", [0, SIZE - 1, SIZE, 2 * SIZE + 77, 4 * SIZE - 1])
def test_a_wrong_byte_is_found_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Sequence[int], at: int
) -> None:
    monkeypatch.setattr(withdrawal, "GRACE", 0.0)
    wrong = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for number in order:
            fill(store, content.segments[number], wrong)
        wait_for_state(content, "quarantined")


def test_a_file_that_somebody_cut_has_another_digest(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        content = add(store, DATA, SIZE)
        for number in (1, 2, 3):
            fill(store, content.segments[number], DATA)
        os.truncate(content.segments[2].path, SIZE - 1)
        fill(store, content.segments[0], DATA)
        wait_for_state(content, "quarantined")


def _pull(store: Store, content: Content, data: bytes, numbers: Callable[[], int | None], seed: int) -> None:
    """Segments as `numbers()` gives them, in pieces of any size; what is evicted meanwhile is somebody else's to fetch again."""
    chance = random.Random(seed)
    while content.state != "quarantined" and (number := numbers()) is not None:
        segment = content.segments[number]
        try:
            while segment.filled < segment.length:
                append(store, segment, data, chance.randrange(1, 3000))
        except Refused:
            continue


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "one wrong byte"])
@pytest.mark.parametrize("seed", range(4))
def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, is_right: bool) -> None:
    """Four who append anywhere and one who evicts anything: in the end it is right, or found wrong."""
    monkeypatch.setattr(withdrawal, "GRACE", 0.0)
    monkeypatch.setattr(verification, "_TURN", 2 * SIZE)
    monkeypatch.setattr(running, "_STRIDE", 3)
    chance, count = random.Random(seed), 24
    data = chance.randbytes(count * SIZE - 100)
    sent = data if is_right else data[:-1] + bytes([data[-1] ^ 1])
    with Store(tmp_path) as store:
        content = add(store, data, SIZE)
        order = [*range(count), *(chance.randrange(count) for _ in range(60))]
        lock = threading.Lock()
        chance.shuffle(order)

        def take() -> int | None:
            with lock:
                return order.pop() if order else None

        def evict() -> None:
            while order:
                store._withdrawal.evict([chance.choice(content.segments)])

        threads = [threading.Thread(target=_pull, args=(store, content, sent, take, n)) for n in range(4)]
        threads.append(threading.Thread(target=evict))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        numbers = iter(range(count))  # an eviction may have been the last to come
        _pull(store, content, sent, lambda: next(numbers, None), 0)
        wait_for_state(content, "verified" if is_right else "quarantined")
        if is_right:
            assert b"".join(s.path.read_bytes()[: s.length] for s in content.segments) == data
            assert content.last_error is None
