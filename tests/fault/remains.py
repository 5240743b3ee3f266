"""What is left of a store whose daemon or machine has ended, read without the daemon: the catalog by its schema, files by their names.

The claims of rule 2 that can be made of a disk alone, at any moment and without knowing what happened, are `check`'s: what is recorded is
there, whole, and has the bytes that belong there; what was made before its row is there. A recovery may drop what is more than that, and
nothing else: `unrecorded` is what it has to drop, `unaccounted` must be empty once it has.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from modelvold.layer.extent import padded
from modelvold.oci.digest import Digest
from modelvold.oci.media_type import Reading
from modelvold.store.content import WHOLE, folder_of

from tests.fault.tally import Tally
from tests.lab.content import Content, Generated

#: By the blob's digest.
Sources = Mapping[str, Content]
#: A content's id, which is never given twice, and a segment's number.
Key = tuple[int, int]

_IN_A_STORE = {"lock", "ballast", "catalog.db", "catalog.db-wal", "catalog.db-shm", "content", "volumes", "snapshots"}


@dataclass(frozen=True, slots=True)
class Part:
    """A segment: its row, and the `size` of its file, -1 where there is none."""

    content: int
    number: int
    start: int
    length: int
    fingerprint: bytes | None
    digest: bytes | None
    moved: bool
    path: Path = field(repr=False)
    size: int

    @property
    def key(self) -> Key:
        return self.content, self.number

    @property
    def is_recorded(self) -> bool:
        return self.fingerprint is not None


@dataclass(frozen=True, slots=True)
class Whole:
    """A content: its row and its segments. `folder` is where it lies, which a crash may leave ahead of the row."""

    id: int
    digest: str
    state: str
    folder: Path = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def recorded(self) -> int:
        """Bytes, padding left out."""
        return sum(part.length for part in self.parts if part.is_recorded)


@dataclass(frozen=True)
class Remains:
    """`volumes` are the contents of each by its id; `snapshots` the numbers of those that have a folder."""

    root: Path
    contents: tuple[Whole, ...]
    volumes: Mapping[str, tuple[int, ...]]
    snapshots: frozenset[int]

    @property
    def parts(self) -> Iterator[Part]:
        return (part for content in self.contents for part in content.parts)

    @property
    def recorded(self) -> set[Key]:
        return {part.key for part in self.parts if part.is_recorded}

    @property
    def unrecorded(self) -> list[Part]:
        """Segments with bytes that no record speaks for."""
        return [part for part in self.parts if part.size > 0 and not part.is_recorded]

    @property
    def to_go(self) -> list[Path]:
        """Files with bytes that no record speaks for: what a recovery truncates, or removes with the content's folder."""
        known = {content.folder for content in self.contents}
        folders = (path for path in (self.root / "content").glob("*/sha256/*/*") if path not in known)
        strays = (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        return [*(part.path for part in self.unrecorded), *strays]

    def recorded_of(self, volume: str, *, verified: bool = False) -> int:
        """Bytes that the catalog calls durable, or of verified contents, in a volume; 0 where it is not there."""
        of = self.volumes.get(volume, ())
        by_id = {content.id: content for content in self.contents}
        return sum(by_id[number].recorded for number in of if not verified or by_id[number].state == "verified")

    def check(self, sources: Sources, tally: Tally) -> None:
        """Raises AssertionError for a record that was invented, and for wrong bytes. Nobody has sent any."""
        for volume in self.volumes:
            assert (self.root / "volumes" / f"{volume}.erofs").is_file(), f"volume {volume} has no image"
        for number in self.snapshots:
            assert (self.root / "snapshots" / str(number) / "fs").is_dir(), f"snapshot {number} has no folder"
        for content in self.contents:
            assert content.state != "quarantined", f"right bytes were called wrong: {content}"
            for part in content.parts:
                assert part.size >= 0, f"a row without a file: {part}"
                if part.is_recorded and not part.moved:
                    _check_bytes(part, sources[content.digest], tally)
                if part.digest is not None:
                    expected = part_of(sources[content.digest], part.start, part.length)
                    assert part.digest == hashlib.sha256(expected).digest(), f"a wrong digest is kept: {part}"
                is_promised = part.is_recorded or part.digest is not None
                assert content.state != "verified" or is_promised, f"called verified, and anything may come: {part}"

    @property
    def unaccounted(self) -> list[str]:
        """What lies in the store and no row speaks for, in sorted order."""
        known = {
            content.folder: {f"{part.number:05d}" for part in content.parts} | {WHOLE} for content in self.contents
        }
        folders = [path for path in (self.root / "content").glob("*/sha256/*/*") if path not in known]
        others = [path for folder, names in known.items() for path in folder.iterdir() if path.name not in names]
        images = [path for path in (self.root / "volumes").iterdir() if path.name not in self._images]
        numbers = {str(number) for number in self.snapshots} | {"removed"}
        snapshots = [path for path in (self.root / "snapshots").iterdir() if path.name not in numbers]
        snapshots += (self.root / "snapshots/removed").glob("*")
        strays = [path for path in self.root.iterdir() if path.name not in _IN_A_STORE | {"lost+found"}]
        found = [*folders, *others, *images, *snapshots, *strays, *(part.path for part in self.unrecorded)]
        return sorted(str(path.relative_to(self.root)) for path in found)

    @property
    def _images(self) -> set[str]:
        return {f"{volume}{suffix}" for volume in self.volumes for suffix in (".erofs", ".tree")}


def look(root: Path) -> Remains:
    """At the store of a daemon that has ended. Nothing of it is changed, not even by SQLite's own recovery."""
    with tempfile.TemporaryDirectory() as aside:
        for name in ("catalog.db", "catalog.db-wal"):
            if (root / name).exists():
                shutil.copy(root / name, aside)
        with closing(sqlite3.connect(Path(aside) / "catalog.db")) as catalog:
            return _read(catalog, root)


def recorded_now(root: Path) -> set[Key]:
    """What the catalog of a running daemon calls durable. It is committed: what we see here is on the disk."""
    with closing(sqlite3.connect(f"file:{root / 'catalog.db'}?mode=ro", uri=True, timeout=30)) as catalog:
        rows = catalog.execute("SELECT content, number FROM segment WHERE fingerprint IS NOT NULL")
        return {(content, number) for content, number in rows}


def _read(catalog: sqlite3.Connection, root: Path) -> Remains:
    tables = {name for (name,) in catalog.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    contents, volumes, numbers = [], dict[str, tuple[int, ...]](), frozenset[int]()
    if "content" in tables:
        rows = catalog.execute("SELECT id, digest, reading, source, state FROM content ORDER BY id").fetchall()
        contents = [_content(catalog, root, *row) for row in rows]
        named = catalog.execute(
            "SELECT id, content FROM volume LEFT JOIN volume_layer ON volume = id ORDER BY id, position"
        )
        for volume, content in named.fetchall():
            volumes[volume] = (*volumes.get(volume, ()), *([] if content is None else [content]))
    if "snapshots" in tables:
        numbers = frozenset(n for (n,) in catalog.execute("SELECT number FROM snapshots WHERE volume IS NULL"))
    return Remains(root, tuple(contents), volumes, numbers)


def _content(
    catalog: sqlite3.Connection, root: Path, number: int, digest: str, reading: str, source: str, state: str
) -> Whole:
    named, read = Digest.parse(digest), Reading(reading)
    folder = folder_of(root, named, read, source)
    if state == "verified" and not folder.exists():  # moved to the shared place, and that not recorded yet
        folder = folder_of(root, named, read, "")
    rows: Iterable[tuple[int, int, int, bytes | None, bytes | None, int]] = catalog.execute(
        "SELECT number, start, length, fingerprint, digest, moved FROM segment WHERE content = ? ORDER BY number",
        (number,),
    ).fetchall()
    parts = []
    for part, start, length, fingerprint, sha256, moved in rows:
        path = folder / f"{part:05d}"
        size = path.stat().st_size if path.exists() else -1
        parts.append(Part(number, part, start, length, fingerprint, sha256, bool(moved), path, size))
    return Whole(number, digest, state, folder, tuple(parts))


def _check_bytes(part: Part, source: Content, tally: Tally) -> None:
    assert part.size == padded(part.length), f"a record was invented: {part}"
    found = memoryview(part.path.read_bytes())
    tally.compare(found[: part.length], part_of(source, part.start, part.length), part)
    tally.compare(found[part.length :], bytes(part.size - part.length), f"the padding of {part}")
    assert part.fingerprint == xxhash.xxh3_64(found[: part.length]).digest(), f"a wrong fingerprint is recorded: {part}"


def part_of(source: Content, start: int, length: int) -> bytes:
    """The bytes [start, start + length), cut at the end."""
    if isinstance(source, Generated):
        return source.at(start, length)
    assert isinstance(source, bytes)
    return source[start : start + length]
