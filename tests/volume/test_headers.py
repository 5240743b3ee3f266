"""Headers of tars over HTTP: the requests made and the bytes asked for, and what ends them."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from modelvold import errors
from modelvold.layer import tar as walking
from modelvold.layer.extent import BLOCK, BlobOffset, ContentOffset, Extent, padded
from modelvold.layer.toc import Toc
from modelvold.oci.digest import Digest
from modelvold.oci.document import Descriptor
from modelvold.oci.reference import Repository
from modelvold.registry.body import Body
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.volume import headers as room
from modelvold.volume.headers import Bound, read_headers
from modelvold.volume.spool import Spool

from tests.fakes.registry import Auth, FakeRegistry, Generated
from tests.layer.tars import END, header, member, pax, record, whole

KIB = 1 << 10
MIB = 1 << 20
_TYPE = "application/vnd.cncf.model.weight.v1.tar"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PAUSE", 0.01)
    monkeypatch.setattr(room, "_STALL", 5.0)


@dataclass(slots=True)
class Desk:
    """One registry, one client, and what is asked with it."""

    registry: FakeRegistry
    client: Client
    spool: Spool
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def repository(self) -> Repository:
        return Repository(self.registry.address, "models/tiny")

    def layer(self, blob: bytes | Generated, size: int | None = None) -> Descriptor:
        """Of a blob that the registry holds, under a digest that nobody checks."""
        length = blob.size if isinstance(blob, Generated) else len(blob)
        digest = self.registry.put_blob(blob, Digest.of(b"%d" % len(self.registry.blobs)))
        return Descriptor(_TYPE, digest, length if size is None else size)

    def read(self, blob: bytes | Generated) -> Toc:
        return read_headers(
            self.client, self.repository, self.layer(blob), self.spool, bound=Bound(), stopping=self.closing
        )

    def kept(self, start: int, end: int) -> bytes:
        """Of the last layer, what is known from `start` on, up to `end`."""
        wanted = Extent(ContentOffset(start), ContentOffset(end))
        last = Digest.parse(list(self.registry.blobs)[-1])
        return b"".join(map(bytes, self.spool.pieces(last, wanted)))

    def refused(self, layer: Descriptor, failure: type[errors.Failure], saying: str) -> int:
        """How many requests were made until `failure`."""
        with pytest.raises(failure, match=saying):
            read_headers(self.client, self.repository, layer, self.spool, bound=Bound(), stopping=self.closing)
        return len(self.registry.requests)

    @property
    def asked(self) -> list[tuple[int, int]]:
        """The ranges, half-open, in order."""
        pairs = (request.range.removeprefix("bytes=").split("-") for request in tuple(self.registry.requests))
        return [(int(first), int(last) + 1) for first, last in pairs]

    @property
    def connections(self) -> int:
        return len({request.connection for request in tuple(self.registry.requests)})


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    before = set(threading.enumerate())
    with FakeRegistry() as registry, Client(Hosts(), Credentials(None)) as client, Spool(tmp_path) as spool:
        yield Desk(registry, client, spool)
    assert set(threading.enumerate()) == before


def files(count: int, size: int) -> bytes:
    return b"".join(member(b"%d" % n, bytes(size)) for n in range(count)) + END


# What is asked for


def test_a_small_tar_is_one_request_and_all_of_it_is_kept(desk: Desk) -> None:
    archive = files(20, 1000)
    assert desk.read(archive) == whole(archive)
    assert desk.kept(0, len(archive)) == archive
    assert desk.asked == [(0, len(archive))]


@pytest.mark.parametrize("blob", [b"", b"\0" * BLOCK, END])
def test_a_tar_without_members(desk: Desk, blob: bytes) -> None:
    assert desk.read(blob) == Toc((), len(blob))
    assert len(desk.asked) == (1 if blob else 0)


def test_small_files_are_read_through_once_in_requests_that_double(desk: Desk) -> None:
    archive = files(3000, 1200)
    read = desk.read(archive)
    assert read == whole(archive)
    assert [(end - start) // KIB for start, end in desk.asked[:-1]] == [256, 512, 1024, 2048]
    assert len(desk.asked) == 5
    check_once_through(desk, len(archive))


def check_once_through(desk: Desk, length: int) -> None:
    """Nothing is left out between windows, nothing is asked for twice, and all of it is kept."""
    assert desk.asked[0][0] == 0
    assert desk.asked[-1][1] == length
    assert [end for _, end in desk.asked[:-1]] == [start for start, _ in desk.asked[1:]]
    assert desk.registry.bytes_sent() == len(desk.kept(0, length)) == length
    assert desk.connections == 1


def test_large_files_are_hopped_over_on_one_connection(desk: Desk) -> None:
    size, count = 3 * MIB, 12
    archive = files(count, size)
    read = desk.read(archive)
    assert read == whole(archive)
    starts = [n * (BLOCK + size) for n in range(count)]
    assert desk.asked == [(start, start + 256 * KIB) for start in starts] + [(len(archive) - len(END), len(archive))]
    assert desk.registry.bytes_sent() == count * 256 * KIB + len(END)
    assert desk.connections == 1


def test_large_files_among_many_small_ones(desk: Desk) -> None:
    """The request under way when the large one is met is given up: what it would still bring is more than a connection costs."""
    small = b"".join(member(b"%d" % n, bytes(1000)) for n in range(1000))
    archive = small + member(b"large", bytes(20 * MIB)) + small + END
    read = desk.read(archive)
    assert read == whole(archive)
    behind = len(small) + BLOCK + 20 * MIB
    assert (behind, behind + 256 * KIB) in desk.asked
    assert len(desk.asked) <= 8
    assert desk.registry.bytes_sent() < 2 * len(small) + 8 * MIB  # and what was on its way when it was given up
    assert desk.connections <= 2


def test_what_was_read_is_kept_where_it_was(desk: Desk) -> None:
    archive = member(b"a", bytes(range(256)) * 1000) + member(b"b", b"b" * 4 * MIB) + member(b"c", b"c" * 900) + END
    desk.read(archive)
    assert desk.kept(0, len(archive)) == archive[: 256 * KIB]
    assert desk.kept(100_000, 200_000) == archive[100_000:200_000]
    assert desk.kept(MIB, 2 * MIB) == b""
    behind = 256_512 + BLOCK + 4 * MIB
    assert desk.kept(behind, len(archive)) == archive[behind:]


def test_an_extended_header_across_a_window_is_asked_for_from_its_start(desk: Desk) -> None:
    long = b"d/" + b"n" * 200
    at = 256 * KIB - BLOCK  # its own header ends where the window does
    for before in (at, at - BLOCK, at + BLOCK - 100 * KIB):
        desk.registry.requests.clear()
        extended = member(b"P", record(b"path", long) + record(b"comment", b"c" * 150 * KIB), b"x")
        archive = member(b"first", bytes(before - BLOCK)) + extended + member(b"cut", b"x") + END
        read = desk.read(archive)
        assert read == whole(archive)
        assert [entry.path for entry in read.entries] == ["first", long.decode()]
        assert desk.asked[1][0] == before + BLOCK
        assert len(desk.asked) == 2
        assert desk.connections == 1


def test_an_extended_header_longer_than_a_window_is_asked_for_whole(desk: Desk) -> None:
    archive = member(b"P", record(b"comment", b"c" * 900 * KIB), b"x") + member(b"a", b"x") + END
    assert desk.read(archive) == whole(archive)
    behind = len(archive) - len(END) - 2 * BLOCK
    assert desk.asked == [(0, 256 * KIB), (BLOCK, behind), (behind, len(archive))]
    assert desk.connections == 1


def test_every_form_is_read_as_it_is_in_one_piece(desk: Desk) -> None:
    """Windows end anywhere, also inside a block."""
    parts = [b""]
    for n in range(900):
        parts.append(pax(path=b"p/%d" % n, mtime=b"1.5") + member(b"short", bytes(n)))
        parts.append(member(b"L", b"long/" * 30 + b"%d" % n, b"L") + member(b"short", bytes(7 * n % 1000)))
        parts.append(member(b"link%d" % n, kind=b"1", link=b"p/%d" % n))
    archive = b"".join(parts) + END
    assert desk.read(archive) == whole(archive)
    check_once_through(desk, len(archive))


# A registry that is ill


def test_a_cut_body_is_gone_on_with_where_it_was_cut(desk: Desk) -> None:
    archive = files(1000, 1000)
    step = BLOCK + padded(1000)
    desk.registry.behaviour.cut_after = 100_000
    read = desk.read(archive)
    assert read == whole(archive)
    headers_in_one = -(-(100_000 - BLOCK + 1) // step)
    assert [start for start, _ in desk.asked] == [n * headers_in_one * step for n in range(len(desk.asked))]
    assert len(desk.asked) == -(-1000 // headers_in_one)


def test_tries_without_any_progress_are_counted_from_the_last_one_with(desk: Desk) -> None:
    archive = files(1000, 1000)
    layer = desk.layer(archive)
    desk.registry.behaviour.cut_after = 1000
    count = [0]

    class Worse:
        """Two requests bring something, then none does."""

        def open_range(self, *asked: object, **more: object) -> Body:
            count[0] += 1
            if count[0] == 3:
                desk.registry.behaviour.cut_after = 100
            return desk.client.open_range(*asked, **more)  # type: ignore[arg-type]

    with pytest.raises(errors.Unreachable, match=r"sent 100 of \d+ bytes"):
        read_headers(Worse(), desk.repository, layer, desk.spool, bound=Bound(), stopping=desk.closing)
    starts = [start for start, _ in desk.asked]
    assert starts == [0, 1536, 3072, 3072]


def test_a_registry_that_is_down_is_asked_three_times(desk: Desk) -> None:
    desk.registry.behaviour.status = {".*": 503}
    assert desk.refused(desk.layer(files(3, 10)), errors.Unreachable, "answered 503") == 3


def test_nobody_listening_is_told(desk: Desk) -> None:
    layer = desk.layer(files(3, 10))
    with pytest.raises(errors.Unreachable, match="Connection refused"):
        read_headers(
            desk.client,
            Repository("127.0.0.1:1", "models/tiny"),
            layer,
            desk.spool,
            bound=Bound(),
            stopping=desk.closing,
        )


def test_a_registry_that_falls_silent_before_a_header_is_asked_three_times(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_STALL", 0.3)
    desk.registry.behaviour.stall_after = BLOCK - 1
    assert desk.refused(desk.layer(files(3, 10)), errors.Unreachable, r"silent for 0\.3 s") == 3


def test_a_registry_that_falls_silent_now_and_then_is_read_to_the_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_STALL", 0.3)
    archive = files(200, 1000)
    desk.registry.behaviour.stall_after = 100_000
    assert desk.read(archive) == whole(archive)
    assert len(desk.asked) == 4


def test_a_registry_that_never_answers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_STALL", 0.1)
    desk.registry.behaviour.hang = True
    assert desk.refused(desk.layer(files(3, 10)), errors.Unreachable, "no answer in time") == 3


@pytest.mark.parametrize(
    ("status", "failure"), [(404, errors.NotFound), (403, errors.Forbidden), (401, errors.Unauthorized)]
)
def test_a_refusal_is_told_at_once(desk: Desk, status: int, failure: type[errors.Failure]) -> None:
    desk.registry.behaviour.status = {".*": status}
    assert desk.refused(desk.layer(files(3, 10)), failure, f"answered {status}") == 1


def test_who_is_not_known_is_told_at_once(desk: Desk) -> None:
    desk.registry.auth = Auth()
    assert desk.refused(desk.layer(files(3, 10)), errors.Unauthorized, "wants a user name and password") == 1


@pytest.mark.parametrize("off", [-BLOCK, BLOCK])
def test_a_blob_of_another_size_than_the_manifest_says_is_told_at_once(desk: Desk, off: int) -> None:
    archive = files(1000, 1000)
    layer = desk.layer(archive, len(archive) + off)
    assert desk.refused(layer, errors.Malformed, f"a size of {layer.size} bytes that lies") == 1
    assert desk.registry.bytes_sent() <= 256 * KIB


def test_a_registry_without_ranges_serves_a_small_tar(desk: Desk) -> None:
    archive = files(500, 1000)
    desk.registry.behaviour.ignore_range = True
    assert desk.read(archive) == whole(archive)


def test_what_is_no_tar_is_told_after_one_request(desk: Desk) -> None:
    noise = Generated(1 << 40, lambda offset, length: b"\x07" * length)
    assert desk.refused(desk.layer(noise), errors.Malformed, "tar member") == 1


# Ends


class _Closes:
    """The client, and what happens before its `nth` answer."""

    def __init__(self, desk: Desk, nth: int) -> None:
        self._desk = desk
        self._left = nth

    def open_range(
        self, repository: Repository, digest: Digest, start: BlobOffset, end: BlobOffset, *, timeout: float, size: int
    ) -> Body:
        self._left -= 1
        if not self._left:
            self._desk.closing.set()
        return self._desk.client.open_range(repository, digest, start, end, timeout=timeout, size=size)


@pytest.mark.parametrize(("count", "size"), [(10_000, 1000), (10, 2 * MIB)])
def test_closing_ends_the_reading_with_the_request_under_way(desk: Desk, count: int, size: int) -> None:
    layer = desk.layer(files(count, size))
    with pytest.raises(errors.Unreachable, match="given up"):
        read_headers(_Closes(desk, 2), desk.repository, layer, desk.spool, bound=Bound(), stopping=desk.closing)
    assert len(desk.asked) == 2


def test_closing_ends_a_pause(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PAUSE", 60.0)
    desk.registry.behaviour.status = {".*": 503}
    timer = threading.Timer(0.1, desk.closing.set)
    timer.start()
    assert desk.refused(desk.layer(files(3, 10)), errors.Unreachable, "503") == 1
    timer.join()


# Tars that never end


def endless(block: bytes, step: int = BLOCK) -> Generated:
    """A pebibyte in which `block` stands every `step` bytes, and zeros between."""
    unit = block.ljust(step, b"\0")

    def read(offset: int, length: int) -> bytes:
        first = offset // step
        return (unit * ((offset + length - 1) // step - first + 1))[offset - first * step :][:length]

    return Generated(1 << 50, read)


@pytest.mark.parametrize(
    ("block", "step"),
    [
        (header(b"a"), BLOCK),
        (header(b"g", 0, b"g"), BLOCK),
        (header(b"a", 1000), 3 * BLOCK),
        (header(b"a", 2 * MIB), BLOCK + 2 * MIB),
    ],
    ids=["empty files", "global headers", "small files", "large files"],
)
def test_headers_without_end_are_given_up_at_the_bound(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, block: bytes, step: int
) -> None:
    bound = 100 if step > MIB else 5_000
    monkeypatch.setattr(walking, "MOST_ENTRIES", bound)
    requests = desk.refused(desk.layer(endless(block, step)), errors.Exhausted, f"more than {bound} files and folders")
    assert requests <= (bound + 1 if step > MIB else 6)
    assert desk.registry.bytes_sent() <= max(requests * 256 * KIB, 2 * bound * step + 8 * MIB)


def test_memory_does_not_grow_with_what_is_passed_through(desk: Desk) -> None:
    """A hundred MiB between headers that are 200 KiB apart, each passed through in one buffer."""
    step = BLOCK + 200 * KIB
    layer = desk.layer(Generated(512 * step, endless(header(b"a", 200 * KIB), step).read))
    tracemalloc.start()
    try:
        read = read_headers(desk.client, desk.repository, layer, desk.spool, bound=Bound(), stopping=desk.closing)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(read.entries) == 512
    assert most < 6 * MIB  # the fake registry's pieces among it
    assert desk.connections == 1
