"""The tree and the bytes of volumes, as the kernel shows them."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest
from modelvold.errors import Malformed
from modelvold.layer.toc import Entry, Kind
from modelvold.mount.fuse.shelf import node_of
from modelvold.mount.fuse.wire import ALL

from tests.lab.check import settled
from tests.lab.program import wait_until
from tests.mount.fuse.scene import MIB, Scene, Store, digest, folder_entry, said, scene, store_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

NAMES = [f"{number}.bin" for number in range(10_000)]


def small(folder: Path, more: tuple[Entry, ...] = ()) -> Store:
    return store_of(folder, {"config.json": 700, "d/model": 40 * MIB + 123}, more)


def listed(folder: Path) -> list[str]:
    """In the order of the folder."""
    return [path.name for path in folder.iterdir()]


def test_every_way_of_reading_gives_the_bytes(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    model = store.entries[1]
    pieces = [(0, model.size), (0, 4096), (model.size - 123, 123), (7 * MIB - 512, 1024), (16 * MIB - 4096, 8 * MIB)]
    right = [digest(store.of(model, *piece)) for piece in pieces]
    with scene(tmp_path) as made:
        made.show("one", store)
        for how in ("plain", "random", "mapped", "sendfile"):
            assert said(made.read("one/d/model", *pieces, how=how)) == right, how
        assert (made.target / "one/config.json").read_bytes() == store.of(store.entries[0], 0, 700)


def test_direct_reads_give_the_bytes(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    model = store.entries[1]
    pieces = [(0, 4 * MIB), (512, 4096), (40 * MIB, 4096), (17 * MIB + 512, 3 * MIB)]
    with scene(tmp_path) as made:
        made.show("one", store)
        reader = made.read("one/d/model", *pieces, how="direct")
        assert said(reader) == [digest(store.of(model, *piece)) for piece in pieces]


def test_what_is_said_of_files(tmp_path: Path) -> None:
    link = Entry("d/same", Kind.HARDLINK, link="d/model")
    symlink = Entry("latest", Kind.SYMLINK, link="d/model")
    store = small(tmp_path / "store", (link, symlink))
    with scene(tmp_path) as made:
        made.show("one", store)
        top = made.target / "one"
        model, same = (top / "d/model").stat(), (top / "d/same").stat()
        assert (model.st_size, model.st_blocks, model.st_nlink) == (40 * MIB + 123, 40 * 2048 + 1, 2)
        assert (model.st_mode, model.st_mtime_ns) == (0o100644, 1_700_000_000_123456789)
        assert (model.st_ino, model.st_dev) == (same.st_ino, same.st_dev)
        assert model.st_ino >> 32 == made.shelf.number("one")
        assert (top / "latest").readlink() == Path("d/model")
        assert (top / "latest").lstat().st_size == len("d/model")
        assert (top / "latest").stat().st_ino == model.st_ino
        assert not (top / "nothing").exists()
        assert not (made.target / "nothing").exists()
        assert made.target.stat().st_nlink == 3


def test_room_is_that_of_the_segments(tmp_path: Path) -> None:
    one, two = small(tmp_path / "store"), store_of(tmp_path / "store2", {"x": MIB})
    with scene(tmp_path) as made:
        made.show("one", one)
        made.show("two", two)
        rooms = [os.statvfs(made.target / path) for path in ("one/d/model", "two", "")]
        assert [room.f_blocks * room.f_frsize for room in rooms] == [
            len(one.content), len(two.content), len(one.content) + len(two.content),
        ]  # fmt: skip
        assert {(room.f_bfree, room.f_bavail, room.f_namemax) for room in rooms} == {(0, 0, 255)}


def test_nothing_can_be_written(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        made.show("one", small(tmp_path / "store"))
        for what in (
            lambda: os.open(made.target / "one/config.json", os.O_WRONLY),
            lambda: os.open(made.target / "one/new", os.O_CREAT | os.O_WRONLY),
            (made.target / "one/new").mkdir,
            (made.target / "one/config.json").unlink,
            lambda: (made.target / "one/config.json").chmod(0o777),
        ):
            with pytest.raises(OSError) as caught:
                what()
            assert caught.value.errno == errno.EROFS


def test_there_are_no_extended_attributes(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        made.show("one", small(tmp_path / "store"))
        for _ in range(2):
            for what in (os.listxattr, lambda path: os.getxattr(path, "user.x")):
                with pytest.raises(OSError) as caught:
                    what(made.target / "one/config.json")
                assert caught.value.errno == errno.EOPNOTSUPP


def test_modes_hold_for_other_users(tmp_path: Path) -> None:
    secret = Entry("secret", size=0, mode=0o600)
    tmp_path.chmod(0o755)
    for above in tmp_path.parents:
        if above.stat().st_mode & 0o005 != 0o005 and above != above.parent:
            above.chmod(above.stat().st_mode | 0o005)
    with scene(tmp_path) as made:
        made.show("one", small(tmp_path / "store", (secret, folder_entry("shut", 0o700))))
        # `test` of the shell asks access(2); setpriv makes it another user's
        assert as_nobody("head", "-c", "0", made.target / "one/config.json") == 0
        assert as_nobody("head", "-c", "0", made.target / "one/secret") != 0
        assert as_nobody("ls", made.target / "one/shut") != 0


def as_nobody(*command: str | Path) -> int:
    return subprocess.run(
        command, user=65534, group=65534, extra_groups=[], capture_output=True, check=False
    ).returncode


# -- folders


def test_a_folder_of_ten_thousand_names(tmp_path: Path) -> None:
    entries = [Entry(f"many/{name}", size=0) for name in NAMES]
    with scene(tmp_path) as made:
        made.show("one", store_of(tmp_path / "store", {"config.json": 700}, entries))
        for _ in range(2):  # from us, then from what the kernel keeps
            assert listed(made.target / "one/many") == NAMES
        with os.scandir(made.target / "one/many") as found:
            # its own stat() keeps Python's lock
            assert all(
                entry.is_file(follow_symlinks=False) and entry.inode() == Path(entry.path).stat().st_ino
                for entry in found
            )


def test_places_in_a_folder_stay(tmp_path: Path) -> None:
    entries = [Entry(f"many/{name}", size=0) for name in NAMES[:1000]]
    with scene(tmp_path) as made:
        made.show("one", store_of(tmp_path / "store", {"config.json": 700}, entries))
        folder = Folder(made.target / "one/many")
        all_names = [folder.next() for _ in range(500)]
        place = folder.tell()
        rest = [folder.next() for _ in range(502)]
        assert folder.next() is None
        folder.seek(place)
        assert [folder.next() for _ in range(502)] == rest
        folder.seek(0)
        assert [folder.next() for _ in range(500)] == all_names
        folder.close()
        assert all_names[:4] == [b".", b"..", b"0.bin", b"1.bin"]


class Folder:
    """readdir(3), telldir(3), seekdir(3)."""

    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    for call in (libc.readdir, libc.telldir, libc.closedir):
        call.argtypes = (ctypes.c_void_p,)
    libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)

    def __init__(self, path: Path) -> None:
        self.stream = self.libc.opendir(os.fsencode(path))
        assert self.stream

    def next(self) -> bytes | None:
        entry = self.libc.readdir(self.stream)
        return ctypes.string_at(entry + 19) if entry else None

    def tell(self) -> int:
        return int(self.libc.telldir(self.stream))

    def seek(self, place: int) -> None:
        self.libc.seekdir(self.stream, place)

    def close(self) -> None:
        self.libc.closedir(self.stream)


# -- volumes that come and go


def test_a_volume_in_use_stays(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    with scene(tmp_path) as made:
        made.show("one", store)
        with (made.target / "one/config.json").open("rb"):
            with pytest.raises(OSError) as caught:
                made.shelf.remove("one")
            assert caught.value.errno == errno.EBUSY
        removed(made, "one")
        made.shelf.remove("one")
        assert listed(made.target) == []
        with pytest.raises(FileNotFoundError):
            (made.target / "one").stat()
        made.kernel.forget("one")


def removed(made: Scene, name: str) -> None:
    """RELEASE comes a moment after close(2)."""

    def goes() -> bool:
        try:
            made.shelf.remove(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    assert wait_until(goes, 10)


def test_what_is_left_of_a_removed_volume_is_stale(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    with scene(tmp_path) as made:
        made.show("one", store)
        folder = os.open(made.target / "one", os.O_PATH)
        removed(made, "one")
        made.show("one", store)
        for path in ("d/model", "new"):
            with pytest.raises(OSError) as caught:
                os.open(path, os.O_RDONLY, dir_fd=folder)
            assert caught.value.errno == errno.ESTALE
        os.close(folder)
        assert (made.target / "one").stat().st_ino >> 32 == 2


def test_a_volume_that_is_added_again_goes_on(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    other = store_of(tmp_path / "other", {"else": 5})
    with scene(tmp_path) as made:
        made.show("one", store)
        with (made.target / "one/d/model").open("rb", buffering=0) as file:
            os.pread(file.fileno(), 4096, 0)
            store.folder.rename(tmp_path / "elsewhere")
            assert os.pread(file.fileno(), 4096, 24 * MIB) == store.of(store.entries[1], 24 * MIB, 4096)
            made.shelf.add("one", tmp_path / "elsewhere/image", [(tmp_path / "elsewhere/segments", len(store.extents))])
            assert made.shelf.volumes() == {"one": 1}
            assert os.pread(file.fileno(), 4096, 39 * MIB) == store.of(store.entries[1], 39 * MIB, 4096)
            with pytest.raises(OSError) as caught:
                made.shelf.add("one", other.image, other.where)
            assert caught.value.errno == errno.EBUSY
        removed(made, "one")
        made.shelf.add("one", other.image, other.where)
        assert listed(made.target / "one") == ["else"]


def test_what_cannot_be_a_volume_leaves_nothing_open(tmp_path: Path) -> None:
    store = small(tmp_path / "store")
    (tmp_path / "empty").touch()
    (tmp_path / "rotten").write_bytes(bytes(4096))
    with scene(tmp_path) as made, settled(tmp_path):
        for image, where, failure in (
            (tmp_path / "empty", store.where, Malformed),
            (tmp_path / "rotten", store.where, Malformed),
            (tmp_path / "missing", store.where, OSError),
            (store.image, [(store.segments, 1)], Malformed),
            (store.image, [(tmp_path / "missing", len(store.extents))], OSError),
        ):
            with pytest.raises(failure):
                made.shelf.add("one", image, where)
        assert made.shelf.volumes() == {}


def test_a_rotten_image_is_an_error_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = small(tmp_path / "store")
    image = bytearray(store.image.read_bytes())
    with scene(tmp_path) as made:
        made.show("one", store)
        (made.target / "one").stat()
        root = made.shelf.number("one")
        assert root is not None
        nid = next(nid for name, nid, _ in names_of(made) if name == b"config.json")
        at = image.index(b"config.json")
        with store.image.open("r+b") as rotting:  # the mapping of the served image sees it
            rotting.seek(1152 + 128 * len(store.extents))
            rotting.write(b"\xff" * (at - 1152 - 128 * len(store.extents)))
        for path in ("one/config.json", "one/d"):
            with pytest.raises(OSError) as caught:
                (made.target / path).stat()
            assert caught.value.errno == errno.EIO
        assert made.reads.waiting() == 0
        assert node_of(root, nid) >> 32 == root
    assert "deny request" in caplog.text


def names_of(made: Scene) -> list[tuple[bytes, int, int]]:
    number = made.shelf.number("one")
    assert number is not None
    with made.shelf.held(number) as volume:
        return volume.image.names(volume.image.root)


# -- many at once, and the end


def test_many_readers_at_once(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {f"{n}": 9 * MIB + n for n in range(8)})
    with scene(tmp_path) as made:
        made.show("one", store)
        readers = [made.read(f"one/{n % 8}", (0, 10 * MIB), how=("plain", "mapped")[n % 2]) for n in range(24)]
        for n, reader in enumerate(readers):
            file = store.entries[n % 8]
            if n % 2:  # a slice ends with the file
                assert said(reader) == [digest(store.of(file, 0, 10 * MIB))]
            else:
                assert said(reader) == [digest(store.of(file, 0, file.size))]


def test_pages_are_read_again_once_they_are_dropped(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"model": 8 * MIB})
    with scene(tmp_path) as made:
        made.show("one", store)
        file = os.open(made.target / "one/model", os.O_RDONLY)
        before = os.pread(file, 4096, MIB)
        store.path(0).write_bytes(bytes(8 * MIB))
        assert os.pread(file, 4096, MIB) == before
        made.kernel.invalidate(os.fstat(file).st_ino, MIB, 4096)
        assert os.pread(file, 4096, MIB) == bytes(4096)
        made.kernel.invalidate(node_of(7, 2), 0, MIB)  # nobody knows it
        os.close(file)


def test_unmounting_ends_everything(tmp_path: Path) -> None:
    before = threading.active_count()
    with settled(tmp_path), scene(tmp_path) as made:
        made.show("one", small(tmp_path / "store"))
        listed(made.target / "one/d")
        (made.target / "one/config.json").read_bytes()
    assert threading.active_count() == before


def test_readahead_is_wide(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        made.show("one", small(tmp_path / "store"))
        device = (made.target / "one").stat().st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert setting.read_text() == "1024\n"


def test_a_cut_short_segment_is_no_end_of_file(tmp_path: Path) -> None:
    """Never zeros, and never a file that is shorter than it is."""
    store = store_of(tmp_path / "store", {"model": 8 * MIB})
    with scene(tmp_path) as made:
        made.show("one", store)
        os.truncate(store.path(0), 5 * MIB)
        reader = made.read("one/model", (0, 8 * MIB))
        assert wait_until(lambda: made.reads.waiting() > 0, 10)
        store.fill(0)
        made.reads.shown([(store.inode(0), ALL)])
        while reader.poll() is None:
            made.allow(store, 0)
        assert said(reader) == [digest(store.content)]
