"""Random trees of raw layers and real tars, mounted from complete segments, equal their source byte for byte and in all
that a listing shows, and what GNU tar makes of the same archives; and fsck.erofs finds nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelvold.layer.cut import cut
from modelvold.layer.extent import CHUNK, ContentOffset, Extent, padded
from modelvold.linux.mounts import filesystem_uuid, mount_erofs, unmount
from modelvold.volume.erofs import Image, write_image
from modelvold.volume.tree import merge

from tests.lab.debian import Unavailable, fsck_erofs
from tests.property.layers import FORMS, OWNERS, Folder, HardLink, Member, Raw, Sample, Symlink, Tar, packed
from tests.property.seen import Seen, look
from tests.property.trees import CHUNKS, KINDS, SEGMENTS, SMALL, TARGETS, Specimen, random_tree, raw, trees

pytestmark = pytest.mark.system

SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@lru_cache(maxsize=1)
def why_not() -> str:
    """Empty where images can be mounted here."""
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        with built(raw(Sample("f", 1, 1))) as (mounted, _, _):
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
    contents = ((extents, specimen.layers[number].content) for number, extents in enumerate(segments) if extents)
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
        words = [*command, "-d3", f"--extract={name}/all", "--preserve", *arguments]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, errors="replace")
        assert ran.returncode == 0, ran.stderr
        assert "Extracted filesystem successfully" in ran.stderr, ran.stderr
        assert "<W>" not in ran.stderr, ran.stderr
        check_files(Path(name) / "all", specimen)
        assert copied(look(Path(name) / "all")) == copied(specimen.shown())


def copied(seen: dict[str, Seen]) -> dict[str, Seen]:
    """What a copy has in common with its source: file systems count links to folders as they like."""
    return {path: replace(each, nlink=0) if each.kind == stat.S_IFDIR else each for path, each in seen.items()}


def check_files(copy: Path, specimen: Specimen) -> None:
    for path, content in specimen.contents().items():
        assert (copy / path).read_bytes() == content, path


def check_like_tar(mounted: Path, specimen: Specimen) -> None:
    """The mount shows what GNU tar makes of the same archives, one after the other; the bytes too, which `check_same`
    compared with the same source.
    """
    # Without `-P` links that lead out are made when all is done, and folders that they are in get a new time.
    how = ["-P", "--same-owner", "--same-permissions", "--numeric-owner", "--delay-directory-restore"]
    with tempfile.TemporaryDirectory(prefix="modelvold-tar-") as name:
        for layer in specimen.layers:
            words = ["tar", "-x", "-f-", "-C", name, *how]
            ran = subprocess.run(words, input=layer.content, capture_output=True, timeout=120, check=False)
            assert ran.returncode == 0, ran.stderr.decode(errors="replace")
        check_files(Path(name), specimen)
        assert as_tar(look(Path(name)), specimen) == as_tar(look(mounted), specimen)


def as_tar(seen: dict[str, Seen], specimen: Specimen) -> dict[str, Seen]:
    """Without what tar decides by itself: modes beyond permission bits, folders that no archive names, and times of
    folders that the last one does not name, but may have put something into.
    """
    kept = {path: replace(each, mode=each.mode & 0o777) for path, each in copied(seen).items()}
    last = {member.path for member in specimen.layers[-1].members}
    for path, each in kept.items():
        if each.kind == stat.S_IFDIR and path not in last:
            is_named = path in specimen.folders()
            kept[path] = replace(each, mtime=0) if is_named else Seen(each.kind, 0, 0, 0, 0, 0)
    return kept


def check_same(mounted: Path, specimen: Specimen) -> None:
    assert look(mounted) == specimen.shown()
    contents = specimen.contents()
    order = random.Random(len(contents))
    for path in order.sample(list(contents), len(contents)):
        assert (mounted / path).stat().st_blocks == padded(len(contents[path])) // 512
        check_bytes(mounted / path, contents[path], order)


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


@pytest.mark.parametrize("kind", KINDS)
@SLOW
@given(data=st.data())
def test_a_random_tree_mounts_as_it_was_and_passes_fsck(kind: str, data: st.DataObject) -> None:
    specimen = data.draw(trees(kinds=[kind]))
    with built(specimen) as (mounted, image, arguments):
        check_same(mounted, specimen)
        assert filesystem_uuid(mounted) == image.uuid
        check_fsck(arguments, specimen)
        if all(layer.is_tar for layer in specimen.layers):
            check_like_tar(mounted, specimen)


@SLOW
@given(trees(large=False), st.data())
def test_segments_may_be_cut_at_any_chunk(specimen: Specimen, data: st.DataObject) -> None:
    """Chunks of neighbouring segments that carry equal block numbers, as every one here does, stay apart."""
    apart = specimen.raw()
    cuts = []
    for sample in apart.samples():
        chunks = range(CHUNK, sample.size, CHUNK)
        inner = sorted(data.draw(st.sets(st.sampled_from(chunks)))) if chunks else []
        bounds = [0, *inner, sample.size] if sample.size else []
        cuts.append(tuple(Extent(ContentOffset(a), ContentOffset(b)) for a, b in pairwise(bounds)))
    with built(apart, cuts) as (mounted, _, arguments):
        check_same(mounted, apart)
        check_fsck(arguments, apart)


def test_every_boundary_at_once() -> None:
    specimen = random_tree(1, files=40)
    with built(specimen) as (mounted, _, arguments):
        check_same(mounted, specimen)
        check_fsck(arguments, specimen)


@pytest.mark.parametrize("form", FORMS)
def test_every_size_and_kind_in_one_tar(form: int) -> None:
    sizes = (*SMALL, *CHUNKS, SEGMENTS[form % len(SEGMENTS)])
    members: list[Member] = [
        Folder("", 0o1711, 1_000_000_001, 1, 2),
        *(Sample(f"d/{n}", size, n, 0o6555, n * 10**17 + n, OWNERS[n % 5]) for n, size in enumerate(sizes)),
        *(HardLink(f"links/{n}", f"d/{n}") for n in range(0, len(sizes), 2)),
        *(Symlink(f"links/to-{n}", target, n, n, n) for n, target in enumerate(TARGETS) if len(target) <= 100),
        Folder("d", 0o700, 5 * 10**9, 3, 4),
        Folder("links/empty", 0, 6 * 10**9),
    ]
    layer = packed(members, form, is_dotted=True)
    assert layer.form == form
    check_layers(layer)


def test_a_folder_named_by_two_tars_and_a_tar_that_holds_nothing() -> None:
    """The later of the two counts; none of the devices of the empty one is ever asked."""
    first = Tar((Folder("", 0o700), Folder("d", 0o700, 10**9, 1, 1), Sample("d/one", 700, 1)), FORMS[0])
    second = Tar((Sample("d/two", 700, 2), Folder("d", 0o711, 2 * 10**9, 2, 2), Folder("", 0o755, 10**9)), FORMS[1])
    check_layers(first, Tar(()), second)


def check_layers(*layers: Raw | Tar) -> None:
    specimen = Specimen(layers)
    with built(specimen) as (mounted, _, arguments):
        check_same(mounted, specimen)
        check_fsck(arguments, specimen)
        check_like_tar(mounted, specimen)


@pytest.mark.parametrize("size", [(64 << 20) - 1, 64 << 20, (64 << 20) + 513])
def test_a_large_file_whose_header_is_a_segment(size: int) -> None:
    specimen = Specimen((packed([Sample("small", 700, 1), Sample("large", size, 2), Sample("after", CHUNK + 1, 3)]),))
    with built(specimen) as (mounted, _, _):
        check_same(mounted, specimen)


def test_a_folder_of_thousands_of_names() -> None:
    specimen = Specimen((packed(Sample(f"d/{'n' * (n % 240)}{n}", n % 3, n) for n in range(3000)),))
    with built(specimen) as (mounted, _, arguments):
        check_same(mounted, specimen)
        assert not (mounted / "d" / "absent").exists()
        check_fsck(arguments, specimen)


def test_targets_of_links_around_a_block() -> None:
    targets = [*("t" * length for length in (1, 511, 512, 513, 4095)), "../模型/x", "links"]
    check_layers(packed(Symlink(f"links/{n}", target) for n, target in enumerate(targets)))


def test_nothing_is_wider_than_the_mount() -> None:
    with built(raw(Sample("f", 1, 1, mode=0o600))) as (mounted, _, _):
        assert (mounted / "f").stat().st_mode == 0o100644
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted / "g").touch()


def test_fsck_sees_a_tree_that_is_wrong() -> None:
    """The checker that all of this relies on does check: one directory entry renamed, so that names are no longer
    sorted.
    """
    specimen = raw(Sample("name-a", 0, 0), Sample("name-b", 0, 0))
    with built(specimen) as (_, image, arguments):
        check_fsck(arguments, specimen)
        Path(arguments[-1]).write_bytes(bytes(image.bytes).replace(b"name-a", b"name-z"))
        with pytest.raises(AssertionError, match="wrong dirent name order"):
            check_fsck(arguments, specimen)
