"""When a volume's prefetch begins, in which order, and what changes it: over a store that is filled by hand, and over a registry."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from modelvold.errors import Malformed
from modelvold.fetch.fetcher import Fetcher
from modelvold.fetch.stretch import Stretch
from modelvold.lending.foresight import Foresight
from modelvold.oci.document import Manifest
from modelvold.oci.reference import Reference
from modelvold.registry.client import Client
from modelvold.registry.credentials import Credentials
from modelvold.registry.hosts import Hosts
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.opener import Opener
from modelvold.volume.tree import Tree

from tests.fakes.content import Generated
from tests.fakes.registry import FakeRegistry
from tests.lab.check import settled
from tests.lab.program import wait_until
from tests.store.keeping import fill

MIB = 1 << 20
SHARD = 66 * MIB  # 2 MiB, then four of 16
INDEX = "model.safetensors.index.json"


def _shard(header: int) -> Generated:
    """Of nulls, but for how long its header says it is."""
    start = header.to_bytes(8, "little")
    return Generated(SHARD, lambda at, length: start[at : at + length] + bytes(max(0, length - len(start[at:]))))


def _index(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"tensor {n}": file for n, file in enumerate(files)}}).encode()


class Noted(Fetcher):
    """Writes down what it is asked for."""

    def __init__(self, *words: object, **more: object) -> None:
        super().__init__(*words, **more)  # type: ignore[arg-type]
        self.asked: list[list[Stretch]] = []

    def prefetch(self, order: Sequence[Stretch]) -> None:
        self.asked.append(list(order))
        super().prefetch(order)


@dataclass
class Volume:
    row: VolumeRow
    contents: dict[str, Content]  # by path
    files: dict[str, bytes | Generated]

    def fill(self, path: str, count: int | None = None, segment: int = 0) -> None:
        """What the registry has of it, up to so many bytes of this segment's file."""
        content, file = self.contents[path], self.files[path]
        data = file.read(0, content.segments[segment].extent.end) if isinstance(file, Generated) else file
        fill(self.store, content.segments[segment], data, count)

    store: Store


class Here:
    """Volumes over a registry; nothing is fetched before `fetching`."""

    def __init__(self, folder: Path, registry: FakeRegistry, life: ExitStack) -> None:
        self.registry = registry
        self.life = life
        self.store = life.enter_context(Store(folder / "store"))
        client = life.enter_context(Client(Hosts(folder / "certs.d"), Credentials(None)))
        self.opener = Opener(self.store, client, "amd64")
        self.fetcher = Noted(
            self.store, client, lambda content: [self._reference("x").repository], connections=1, per_host=1, stall=5
        )
        self.broken: set[str] = set()
        self.foresight = life.enter_context(Foresight(self.store, self.fetcher, self._tree))

    def _reference(self, tag: str) -> Reference:
        return Reference.parse(f"{self.registry.address}/models/tiny:{tag}")

    def _tree(self, volume: str) -> Tree:
        if volume in self.broken:
            raise Malformed("no tree")
        return self.opener.tree(volume)

    def open(self, files: dict[str, bytes | Generated], tag: str = "v1") -> Volume:
        self.registry.add_model("models/tiny", tag, files)
        reference = self._reference(tag)
        manifest = self.opener.resolve(reference)
        assert isinstance(manifest, Manifest)
        row = self.opener.open(reference.repository, manifest, str(reference))
        contents = [self.store.content(number) for number in row.contents]
        return Volume(row, dict(zip(files, contents, strict=True)), files, self.store)

    def start(self, volume: Volume) -> None:
        self.foresight.start(volume.row.id, [content for content in volume.contents.values() if not content.is_durable])

    def wait(self, count: int) -> None:
        assert wait_until(lambda: len(self.fetcher.asked) >= count, 10)
        assert len(self.fetcher.asked) == count

    def orders(self, volume: Volume, count: int) -> list[list[str]]:
        """What the fetcher was asked for, `count` times."""
        self.wait(count)
        paths = {content.id: path for path, content in volume.contents.items()}
        return [[f"{paths[s.content]} {s.first}:{s.end}" for s in order] for order in self.fetcher.asked]

    def settle(self, volume: Volume) -> None:
        """Until nothing more is to be learnt of it."""
        assert wait_until(lambda: volume.row.id not in self.foresight._views, 10)
        assert self.foresight._awaited == {}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with settled(tmp_path), FakeRegistry() as registry, ExitStack() as life:
        yield Here(tmp_path, registry, life)


def _names(prefix: str) -> list[str]:
    return [f"{prefix}-{n}.safetensors" for n in (1, 2)]


FIRST, SECOND = _names("m")
FILES: dict[str, bytes | Generated] = {
    "README.md": b"# a model",
    SECOND: _shard(100),
    FIRST: _shard(101),
    INDEX: _index(SECOND),
}
AT_FIRST = [f"{INDEX} 0:1", "README.md 0:1", f"{FIRST} 0:1", f"{SECOND} 0:1", f"{FIRST} 1:5", f"{SECOND} 1:5"]
BETTER = [*AT_FIRST[:3], f"{SECOND} 0:5", f"{FIRST} 1:5"]


def test_the_order_gets_better_once_the_weight_map_has_come(here: Here) -> None:
    """Not before all of it has; and is right from the start where it is here."""
    volume = here.open(FILES)
    here.start(volume)
    assert here.orders(volume, 1) == [AT_FIRST]
    volume.fill(FIRST, 8)
    volume.fill(SECOND, 4096)
    volume.fill(INDEX, 10)
    assert wait_until(lambda: set(here.foresight._awaited) == {volume.contents[INDEX].segments[0]}, 10)
    assert here.orders(volume, 1) == [AT_FIRST]
    volume.fill(INDEX)
    assert here.orders(volume, 2) == [AT_FIRST, BETTER]
    here.settle(volume)
    assert wait_until(lambda: volume.contents[INDEX].is_durable, 10)
    here.start(volume)
    assert here.orders(volume, 3)[2] == BETTER[1:]


def test_a_long_header_is_fetched_whole_before_any_weights(here: Here) -> None:
    volume = here.open({FIRST: _shard(50), SECOND: _shard(20 * MIB)})
    here.start(volume)
    here.wait(1)
    volume.fill(SECOND, 8)
    first, second = here.orders(volume, 2)
    assert first == [f"{FIRST} 0:1", f"{SECOND} 0:1", f"{FIRST} 1:5", f"{SECOND} 1:5"]
    assert second == [f"{FIRST} 0:1", f"{SECOND} 0:3", f"{FIRST} 1:5", f"{SECOND} 3:5"]
    volume.fill(FIRST, 100)
    here.settle(volume)
    assert len(here.fetcher.asked) == 2, "as it was thought to be"


@pytest.mark.parametrize(
    "index", [b"{", b"[" * 100_000, _index("../x", FIRST), _index("absent"), b"\xff" * 9, b'{"weight_map": {"a": 1}}']
)
def test_what_is_not_understood_changes_nothing(here: Here, index: bytes) -> None:
    volume = here.open({**FILES, INDEX: index, FIRST: _shard(2**64 - 1), SECOND: _shard(0)})
    here.start(volume)
    for path in (FIRST, SECOND, INDEX):
        volume.fill(path)
    here.settle(volume)
    assert here.orders(volume, 1) == [AT_FIRST]


def test_one_that_was_forgotten_is_not_begun_again(here: Here) -> None:
    """As when it is unmounted while its first files come."""
    volume = here.open(FILES)
    here.start(volume)
    here.wait(1)
    here.foresight.forget(volume.row.id)
    volume.fill(INDEX)
    here.settle(volume)
    assert len(here.fetcher.asked) == 1


def test_contents_that_are_prefetched_no_more_are_left_alone(here: Here) -> None:
    """A better order is for what is under way."""
    volume = here.open(FILES)
    here.start(volume)
    here.wait(1)
    here.fetcher.forget([volume.contents[FIRST]])
    volume.fill(INDEX)
    assert here.orders(volume, 2)[1] == [line for line in BETTER if FIRST not in line]


def test_a_volume_without_a_tree_comes_layer_by_layer(here: Here) -> None:
    volume = here.open(FILES)
    here.broken.add(volume.row.id)
    here.start(volume)
    assert here.orders(volume, 1) == [["README.md 0:1", f"{SECOND} 0:5", f"{FIRST} 0:5", f"{INDEX} 0:1"]]
    here.settle(volume)


def test_a_volume_that_was_removed_meanwhile(here: Here) -> None:
    """The next one is none the worse."""
    gone = here.open({"gone.bin": b"gone"}, "gone")
    here.store.catalog.remove_volume(gone.row.id)
    here.start(gone)
    volume = here.open({"x.bin": b"x"})
    here.start(volume)
    assert here.orders(volume, 1) == [["x.bin 0:1"]]
    here.settle(gone)


def test_volumes_that_share_a_file_both_learn_from_it(here: Here) -> None:
    names = {name: _shard(100 + n) for n, name in enumerate([FIRST, SECOND])}
    one = here.open({INDEX: _index(SECOND), **names}, "one")
    two = here.open({INDEX: _index(SECOND), "other.bin": b"other", **names}, "two")
    here.start(one)
    here.wait(1)
    here.start(two)
    here.wait(2)
    one.fill(INDEX)
    assert wait_until(lambda: len(here.fetcher.asked) == 4, 10)
    assert [[s.content for s in order][-2:] for order in here.fetcher.asked] == [
        [one.contents[name].id for name in last] for last in [(FIRST, SECOND)] * 2 + [(SECOND, FIRST)] * 2
    ]


@contextmanager
def _fetching(here: Here) -> Iterator[None]:
    threads = set(threading.enumerate())
    with here.fetcher:
        yield
    assert set(threading.enumerate()) <= threads


def test_the_ranges_asked_for(here: Here) -> None:
    """Of two models one behind the other, over one connection: small files, heads, weights."""
    one = here.open({FIRST: _shard(1), SECOND: _shard(2), "config.json": b"{1}", "run.py": b"1"}, "one")
    two = here.open({"a.gguf": Generated(SHARD, lambda _, length: b"a" * length), "config.json": b"{2}"}, "two")
    here.registry.requests.clear()
    here.start(one)
    here.wait(1)
    here.start(two)
    here.wait(2)
    with _fetching(here):
        everything = [*one.contents.values(), *two.contents.values()]
        assert wait_until(lambda: all(content.is_durable for content in everything), 60)
    of = {f"{content.digest}": path for volume in (one, two) for path, content in volume.contents.items()}
    asked = [(of[r.path.rpartition("/")[2]], r.range) for r in here.registry.requests if r.is_blob]
    assert [name for name, _ in groupby(asked, key=lambda each: each[0])] == [
        "config.json", "run.py", FIRST, SECOND, FIRST, SECOND, "config.json", "a.gguf",
    ]  # fmt: skip
    heads = [range_ for name, range_ in asked if name in {FIRST, SECOND}][:2]
    assert heads == [f"bytes=0-{2 * MIB - 1}"] * 2
    assert here.registry.bytes_sent() == sum(content.length for content in everything)
