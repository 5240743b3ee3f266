"""Volumes that are shown when all their bytes are here: who waits, how long, and what is said; over both such backends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.errors import InUse, InvalidInput, Malformed, Mismatch, NotYet, Unreachable
from modelvold.oci.digest import Digest

from tests.fakes.registry import FakeRegistry, Generated
from tests.lab.program import wait_until
from tests.lending.desk import cleared, desk
from tests.property.layers import HardLink, Raw, Sample, packed

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
BIG = Raw(Sample("weights/big.safetensors", 3 << 20, 1))
TAR = packed(
    [Sample("a/one.bin", 700_000, 2, mode=0o640), Sample("a/two.json", 10, 3), HardLink("b/three", "a/one.bin")]
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    with cleared(tmp_path) as registry:
        yield registry


@pytest.fixture(params=["complete", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _read(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


EXPECTED = {
    "weights/big.safetensors": BIG.content,
    "a/one.bin": Sample("", 700_000, 2).content,
    "a/two.json": Sample("", 10, 3).content,
    "b/three": Sample("", 700_000, 2).content,
}


def test_a_prepare_waits_and_is_told_how_far_it_is(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """NotYet with the share that is here, the work goes on, whoever asks again joins it; then it is there at once."""
    with desk(tmp_path, registry, kind) as here:
        digest = here.put(BIG, TAR)
        registry.behaviour.rate = 1 << 19
        with pytest.raises(
            NotYet, match=r"model \S+: \d+ % of its \d+ bytes are here, and it is shown when all are"
        ) as said:
            here.open(digest, 2)
        assert "the work goes on" in said.value.remedy
        assert here.table.mounted() == []
        with pytest.raises(NotYet):
            here.lending.mounted(here.lending.find(None)[0].id)
        asked = len(registry.requests)
        registry.behaviour.rate = None
        volume = here.open(digest, 20)
        assert _read(here.lending.mounted(volume)) == EXPECTED
        assert here.open(digest, 10) == volume
        assert sum(r.sent for r in registry.requests[asked:] if r.is_blob) <= BIG.sample.size + len(TAR.content)
        here.lending.unmount_unused(set())
        assert here.table.mounted() == []
        assert _read(here.lending.mounted(volume)) == EXPECTED, "mounted anew, from what is here"


def test_a_mount_tells_every_step(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    with desk(tmp_path, registry, kind) as here:
        here.put(BIG)
        registry.behaviour.rate = 4 << 20
        steps = here.mount(tmp_path / "at")
        assert [step.present for step in steps] == sorted(step.present for step in steps)
        assert len(steps) > 1
        assert _read(tmp_path / "at") == {"weights/big.safetensors": BIG.content}
        assert here.lending.users(here.lending.find(None)[0].id) == [f"folder {tmp_path}/at"]
        here.lending.unmount(tmp_path / "at")
        assert here.lending.remove(here.reference) == BIG.sample.size
        assert list((here.store.root / "volumes").iterdir()) == []


def test_a_mount_given_up_leaves_the_work_going_on(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    with desk(tmp_path, registry, kind) as here:
        here.put(BIG)
        registry.behaviour.rate = 2 << 20
        (tmp_path / "at").mkdir()
        assert len(list(here.lending.mount(here.reference, tmp_path / "at", iter([False, True]).__next__))) == 1
        assert list((tmp_path / "at").iterdir()) == []
        (row,) = here.lending.find(None)
        assert wait_until(lambda: here.table.is_ready(here.lending.volume(row)), 20)
        assert here.mount(tmp_path / "at") == []
        here.lending.unmount(tmp_path / "at")


def test_rm_ends_the_work(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """Who waited is told; nothing of it stays."""
    with desk(tmp_path, registry, kind) as here:
        digest = here.put(BIG)
        registry.behaviour.rate = 100_000
        told: list[BaseException] = []

        def wait() -> None:
            try:
                here.open(digest, 20)
            except NotYet as failure:
                told.append(failure)

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert wait_until(lambda: bool(here.lending.find(None)) and here.store.used() > 0, 10)
        here.lending.remove(here.reference)
        waiting.join(20)
        assert "given up" in str(told[0])
        assert here.store.contents() == []
        registry.behaviour.rate = None
        assert here.mount(tmp_path / "at") != []
        with pytest.raises(InUse, match="folder"):
            here.lending.remove(here.reference)
        here.lending.unmount(tmp_path / "at")


def test_a_restart_in_the_middle_goes_on_from_there(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """What was durable is not fetched again."""
    with desk(tmp_path, registry, kind) as here:
        digest = here.put(BIG, *(Raw(Sample(f"{n}.bin", 300_000, 20 + n)) for n in range(8)))
        registry.behaviour.rate = 1 << 20
        with pytest.raises(NotYet):
            here.open(digest, 1.5)
    registry.behaviour.rate = None
    with desk(tmp_path, registry, kind) as here:
        durable = sum(content.durable for content in here.store.contents())
        assert durable > 0
        before = registry.bytes_sent()
        volume = here.open(digest, 20)
        assert registry.bytes_sent() - before <= BIG.sample.size + 8 * 300_000 - durable + (1 << 20)
        assert (here.lending.mounted(volume) / "weights/big.safetensors").read_bytes() == BIG.content


def test_a_mount_outlives_its_daemon(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """It is adopted, not made again; and gone when it is released."""
    with desk(tmp_path, registry, kind) as here:
        here.put(BIG, TAR)
        here.mount(tmp_path / "at")
    inode = (tmp_path / "at").stat().st_ino
    assert _read(tmp_path / "at") == EXPECTED
    with desk(tmp_path, registry, kind) as here:
        assert len(here.table.mounted()) == 1
        assert (tmp_path / "at").stat().st_ino == inode
        here.lending.unmount(tmp_path / "at")
        assert here.table.mounted() == []
        assert list((tmp_path / "at").iterdir()) == []
        here.lending.remove(here.reference)
        assert [path for path in here.store.root.rglob("*") if path.is_file() and path.suffix == ".erofs"] == []


def test_what_cannot_be_completed_says_why(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    with desk(tmp_path, registry, kind) as here:
        right = BIG.content
        digest = here.put(BIG)
        blob = str(Digest.of(right))
        registry.put_blob(Generated.of(b"x" + right[1:]), Digest.parse(blob))
        with pytest.raises(Mismatch, match="its bytes have digest"):
            here.open(digest, 20)
        with pytest.raises(Mismatch, match="is in quarantine"):
            here.mount(tmp_path / "at")
        here.lending.remove(here.reference)
        registry.put_blob(right)
        registry.behaviour.status["/v2/.*/blobs/.*"] = 403
        with pytest.raises(Exception, match="answered 403"):
            here.open(digest, 20)
        registry.behaviour.status.clear()
        assert here.open(digest, 20)


def test_other_headers_than_the_tar_has(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    """A registry shows one tar when it is opened and gives another, the right one, when it is fetched: no name of the first is
    ever shown over the bytes of the second."""
    right = packed([Sample("right.bin", 600_000, 5), Sample("other.bin", 600_000, 6)])
    forged = packed([Sample("forged.bin", 600_000, 5), Sample("other.bin", 600_000, 6)])
    assert len(forged.content) == len(right.content)
    with desk(tmp_path, registry, kind) as here:
        digest = here.put(right)
        blob = Digest.of(right.content)
        registry.put_blob(Generated.of(forged.content), blob)
        started = threading.Event()

        def swap() -> None:
            # The walk's one window is over: what is kept of it is a MiB at most, and the rest is asked for anew.
            wait_until(lambda: bool(here.lending.find(None)), 10)
            registry.put_blob(right.content)
            started.set()

        swapping = threading.Thread(target=swap)
        swapping.start()
        with pytest.raises((Mismatch, Malformed)):
            here.open(digest, 20)
        swapping.join()
        assert started.is_set()
        (content,) = here.store.contents()
        assert content.state == "quarantined"
        assert wait_until(lambda: content.present == 0, 10)


def test_a_place_that_is_not_to_be_had(tmp_path: Path, registry: FakeRegistry, kind: str) -> None:
    with desk(tmp_path, registry, kind) as here:
        here.put(BIG)
        with pytest.raises(InvalidInput, match="not an existing folder"):
            list(here.lending.mount(here.reference, tmp_path / "absent", lambda: False))
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(InvalidInput, match="real, absolute path"):
            list(here.lending.mount(here.reference, tmp_path / "link", lambda: False))
        assert registry.requests == []


def test_a_silent_registry_ends_the_work(
    tmp_path: Path, registry: FakeRegistry, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits is told after the stall, not never."""
    with desk(tmp_path, registry, kind) as here:
        monkeypatch.setattr(here.lending._pulls, "_stall", 1.0)
        digest = here.put(BIG)
        registry.behaviour.only, registry.behaviour.hang = "/v2/.*/blobs/.*", True
        began = time.monotonic()
        with pytest.raises(Unreachable):
            here.open(digest, 20)
        assert time.monotonic() - began < 15
        registry.behaviour.hang = False


def test_links_where_nothing_can_be_bound(tmp_path: Path, registry: FakeRegistry) -> None:
    """The directory backend without privilege: a place becomes a link, and an empty folder again."""
    at = tmp_path / "at"
    with desk(tmp_path, registry, "directory", links=True) as here:
        here.put(TAR)
        at.mkdir()
        (at / "mine").touch()
        with pytest.raises(InvalidInput, match="must be an empty folder"):
            here.mount(at)
        (at / "mine").unlink()
        here.mount(at)
        assert at.is_symlink()
        assert set(_read(at)) == {"a/one.bin", "a/two.json", "b/three"}
    with desk(tmp_path, registry, "directory", links=True) as here:
        assert len(here.table.mounted()) == 1
        here.lending.unmount(at)
        assert (at.is_dir(), at.is_symlink(), list(at.iterdir())) == (True, False, [])
        here.lending.remove(here.reference)
        assert list((here.run / "volumes").iterdir()) == []
