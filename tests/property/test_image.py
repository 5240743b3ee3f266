"""Random trees, mounted for real from complete segments, equal their source byte for byte; and fsck.erofs finds
nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelvold.layer.cut import cut
from modelvold.layer.extent import CHUNK, ContentOffset, Extent, padded
from modelvold.layer.toc import Entry, Kind, Toc
from modelvold.linux.mounts import filesystem_uuid, mount_erofs, unmount
from modelvold.volume.erofs import Image, write_image
from modelvold.volume.tree import merge

from tests.lab.debian import Unavailable, fsck_erofs
from tests.property.trees import Sample, Specimen, random_tree, trees

pytestmark = pytest.mark.system

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@lru_cache(maxsize=1)
def why_not() -> str:
    """Empty where images can be mounted here."""
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        with built(Specimen(((Sample("f", 1, 1),),))) as (mounted, _, _):
            (mounted / "f").read_bytes()
    except OSError as error:
        if error.errno not in {errno.ENODEV, errno.ENOTBLK, errno.ENOSYS, errno.EPERM}:
            raise
        return f"file-backed EROFS does not mount here: {error}"
    return ""


@pytest.fixture(autouse=True)
def _mountable() -> None:
    if why_not():
        pytest.skip(why_not())


@contextmanager
def built(specimen: Specimen, cuts: list[tuple[Extent, ...]] | None = None) -> Iterator[tuple[Path, Image, list[str]]]:
    """The specimen mounted; with it the image, and the arguments that tell fsck.erofs what to check."""
    tocs = specimen.tocs()
    segments = cuts if cuts is not None else [cut(toc) for toc in tocs]
    image = write_image(merge(tocs), segments)
    contents = ((extents, specimen.content(number)) for number, extents in enumerate(segments) if extents)
    pieces = (content[extent.start : extent.end] for extents, content in contents for extent in extents)
    with shown(image, pieces) as (mounted, arguments):
        yield mounted, image, arguments


@contextmanager
def shown(image: Image, segments: Iterable[bytes]) -> Iterator[tuple[Path, list[str]]]:
    """The image mounted with these segments, written as the store writes them: padded to whole blocks."""
    with tempfile.TemporaryDirectory(prefix="modelvold-image-") as name:
        folder = Path(name)
        devices = []
        for number, segment in enumerate(segments):
            devices.append(folder / f"{number:05}")
            devices[-1].write_bytes(segment + bytes(padded(len(segment)) - len(segment)))
        (folder / "image").write_bytes(image.bytes)
        (folder / "mounted").mkdir()
        mount_erofs(folder / "image", devices, folder / "mounted")
        try:
            yield folder / "mounted", [*(f"--device={device}" for device in devices), str(folder / "image")]
        finally:
            unmount(folder / "mounted")


def check_fsck(arguments: list[str], specimen: Specimen) -> None:
    """What fsck.erofs finds in the image is sound, and what it extracts is the source: without that it follows no
    chunk.
    """
    try:
        command = fsck_erofs()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with tempfile.TemporaryDirectory(prefix="modelvold-extracted-") as name:
        words = [*command, "-d3", f"--extract={name}/all", "--no-preserve", *arguments]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "Extracted filesystem successfully" in ran.stderr, ran.stderr
        assert "<W>" not in ran.stderr, ran.stderr
        for sample in specimen.samples():
            assert (Path(name) / "all" / sample.path).read_bytes() == sample.content, sample.path


def check_same(mounted: Path, specimen: Specimen) -> None:
    samples = specimen.samples()
    assert listing(mounted) == expected_listing(samples)
    order = random.Random(len(samples))
    for sample in order.sample(samples, len(samples)):
        path = mounted / sample.path
        stat = path.stat()
        assert (stat.st_size, stat.st_uid, stat.st_gid, stat.st_nlink) == (sample.size, 0, 0, 1)
        assert stat.st_mtime_ns == sample.mtime
        assert stat.st_blocks == padded(sample.size) // 512
        check_bytes(path, sample.content, order)


def check_bytes(path: Path, content: bytes, order: random.Random) -> None:
    """Pieces in random order first, half of them mapped: then nothing has read ahead in file order."""
    with path.open("rb", buffering=0) as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if content else b""
        for _ in range(8 if content else 0):
            start = order.randrange(len(content))
            end = min(len(content), start + order.choice((1, 511, 4096, CHUNK + 1)))
            piece = os.pread(file.fileno(), end - start, start) if order.random() < 0.5 else mapped[start:end]
            assert piece == content[start:end], (path, start, end)
        assert mapped[:] == content, path
        if not isinstance(mapped, bytes):
            mapped.close()
        assert path.read_bytes() == content, path


def listing(folder: Path) -> dict[str, int]:
    """Every path below, folders included, with its number of links."""
    return {
        str((Path(above) / name).relative_to(folder)): (Path(above) / name).stat().st_nlink
        for above, folders, files in os.walk(folder)
        for name in folders + files
    }


def expected_listing(samples: list[Sample]) -> dict[str, int]:
    links = {sample.path: 1 for sample in samples}
    folders = {str(above) for sample in samples for above in Path(sample.path).parents} - {"."}
    subfolders = [str(Path(folder).parent) for folder in folders]
    return links | {folder: 2 + subfolders.count(folder) for folder in folders}


@SLOW
@given(trees())
def test_a_random_tree_mounts_as_it_was_and_passes_fsck(specimen: Specimen) -> None:
    with built(specimen) as (mounted, image, arguments):
        check_same(mounted, specimen)
        assert filesystem_uuid(mounted) == image.uuid
        check_fsck(arguments, specimen)


@SLOW
@given(trees(large=False), st.data())
def test_segments_may_be_cut_at_any_chunk(specimen: Specimen, data: st.DataObject) -> None:
    """Chunks of neighbouring segments that carry equal block numbers, as every one here does, stay apart."""
    raw = specimen.raw()
    cuts = []
    for sample in raw.samples():
        chunks = range(CHUNK, sample.size, CHUNK)
        inner = sorted(data.draw(st.sets(st.sampled_from(chunks)))) if chunks else []
        bounds = [0, *inner, sample.size] if sample.size else []
        cuts.append(tuple(Extent(ContentOffset(a), ContentOffset(b)) for a, b in pairwise(bounds)))
    with built(raw, cuts) as (mounted, _, arguments):
        check_same(mounted, raw)
        check_fsck(arguments, raw)


def test_every_boundary_at_once() -> None:
    specimen = random_tree(1, files=40)
    with built(specimen) as (mounted, _, arguments):
        check_same(mounted, specimen)
        check_fsck(arguments, specimen)


@pytest.mark.parametrize("size", [(64 << 20) - 1, 64 << 20, (64 << 20) + 513])
def test_a_large_file_whose_header_is_a_segment(size: int) -> None:
    specimen = Specimen(((Sample("small", 700, 1), Sample("large", size, 2), Sample("after", CHUNK + 1, 3)),))
    with built(specimen) as (mounted, _, _):
        check_same(mounted, specimen)


def test_a_folder_of_thousands_of_names() -> None:
    specimen = Specimen((tuple(Sample(f"d/{'n' * (n % 240)}{n}", n % 3, n) for n in range(3000)),))
    with built(specimen) as (mounted, _, arguments):
        check_same(mounted, specimen)
        assert not (mounted / "d" / "absent").exists()
        check_fsck(arguments, specimen)


def test_links_and_named_folders() -> None:
    targets = {f"to-{length}": "t" * length for length in (1, 511, 512, 513, 4095)} | {"é": "../模型/x", "file": "d/f"}
    folder = Entry("d", Kind.DIRECTORY, mode=0o750, uid=3, gid=4, mtime=5)
    links = (Entry(f"links/{name}", Kind.SYMLINK, link=target) for name, target in targets.items())
    toc = Toc((folder, Entry("d/empty", Kind.DIRECTORY, mode=0o755), Entry("d/f", size=3, uid=6, gid=7), *links), 3)
    with shown(write_image(merge([toc]), [cut(toc)]), [b"abc"]) as (mounted, arguments):
        assert {path.name: str(path.readlink()) for path in (mounted / "links").iterdir()} == targets
        stat = (mounted / "d").stat()
        assert (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_nlink) == (0o40750, 3, 4, 5, 3)
        assert list((mounted / "d" / "empty").iterdir()) == []
        stat = (mounted / "d" / "f").stat()
        assert (stat.st_uid, stat.st_gid, (mounted / "d" / "f").read_bytes()) == (6, 7, b"abc")
        check_fsck(arguments, Specimen(()))


def test_nothing_is_wider_than_the_mount() -> None:
    with built(Specimen(((Sample("f", 1, 1, mode=0o600),),))) as (mounted, _, _):
        assert (mounted / "f").stat().st_mode == 0o100644
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted / "g").touch()


def test_fsck_sees_a_tree_that_is_wrong() -> None:
    """The checker that all of this relies on does check: one directory entry renamed, so that names are no longer
    sorted.
    """
    specimen = Specimen(((Sample("name-a", 0, 0),), (Sample("name-b", 0, 0),)))
    with built(specimen) as (_, image, arguments):
        check_fsck(arguments, specimen)
        at = image.bytes.index(b"name-a")
        Path(arguments[-1]).write_bytes(image.bytes[:at] + b"name-z" + image.bytes[at + 6 :])
        with pytest.raises(AssertionError, match="wrong dirent name order"):
            check_fsck(arguments, specimen)
