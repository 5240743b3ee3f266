from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.layer.cut import cut
from modelvold.layer.raw import toc_of_raw
from modelvold.linux import mounts, selinux
from modelvold.linux.mounts import (
    Attribute,
    MountEntry,
    bind,
    bind_readonly,
    filesystem_uuid,
    make_private,
    mount_erofs,
    mount_id_unique,
    mountinfo,
    unmount,
)
from modelvold.volume.erofs import Image, write_image
from modelvold.volume.tree import merge

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose mounts end with the test."""
    yield tmp_path
    for entry in reversed(mountinfo()):
        if Path(entry.mount_point).is_relative_to(tmp_path):
            unmount(Path(entry.mount_point), detach=True)


def entry_at(path: Path) -> MountEntry | None:
    return next((entry for entry in reversed(mountinfo()) if entry.mount_point == str(path)), None)


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def made(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


def image_in(folder: Path, content: bytes = b"content") -> tuple[Image, Path, list[Path]]:
    toc = toc_of_raw("d/f", len(content), 0o644, 0)
    image = write_image(merge([toc]), [cut(toc)])
    (folder / "image").write_bytes(image.bytes)
    (folder / "0").write_bytes(content + bytes(-len(content) % 512))
    return image, folder / "image", [folder / "0"]


def mounted_or_skipped(image: Path, devices: list[Path], target: Path, *, directio: bool = False) -> None:
    try:
        mount_erofs(image, devices, target, directio=directio)
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.ENOTBLK, errno.ENOSYS, errno.EPERM}:
            pytest.skip(f"file-backed EROFS does not mount here: {error}")
        raise


@root
@pytest.mark.parametrize("directio", [False, True])
def test_an_image_mounts_read_only_and_without_privileges(folder: Path, directio: bool) -> None:
    image, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target, directio=directio)

    entry = entry_at(target)
    assert entry is not None
    assert (entry.fs_type, entry.source, entry.root) == ("erofs", str(path), "/")
    assert {"ro", "nosuid", "nodev"} <= entry.options
    assert "ro" in entry.super_options
    assert ("directio" in entry.super_options) == directio
    assert (target / "d" / "f").read_bytes() == b"content"
    assert filesystem_uuid(target) == filesystem_uuid(target / "d" / "f") == image.uuid
    unmount(target)
    assert entry_at(target) is None


@root
def test_flags_say_what_the_mount_forbids(folder: Path) -> None:
    _, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target)
    unmount(target)
    mount_erofs(path, devices, target, flags=Attribute.RDONLY | Attribute.NOEXEC)
    entry = entry_at(target)
    assert entry is not None
    assert entry.options >= {"ro", "noexec"}
    assert entry.options.isdisjoint({"nosuid", "nodev"})


@root
def test_a_mount_that_fails_names_the_image_and_leaves_nothing(folder: Path) -> None:
    _, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target)
    unmount(target)
    descriptors = open_descriptors()
    for image, given, code in (
        (path, [devices[0], devices[0]], errno.EINVAL),
        (path, [target], errno.EINVAL),
        (path, [folder / "absent"], errno.ENOENT),
        (path, [folder / "long" / ("x" * (254 - len(str(folder))))], errno.ENAMETOOLONG),
        (folder / "absent", devices, errno.ENOENT),
        (devices[0], [], errno.EINVAL),
    ):
        with pytest.raises(OSError, match="mount of erofs") as failure:
            mount_erofs(image, given, target)
        assert (failure.value.errno, failure.value.filename) == (code, str(image))
    with pytest.raises(FileNotFoundError) as nowhere:
        mount_erofs(path, devices, folder / "nowhere")
    assert nowhere.value.filename == str(folder / "nowhere")
    assert entry_at(target) is None
    assert open_descriptors() == descriptors


@root
@pytest.mark.skipif(selinux.is_active(), reason="this kernel has a policy")
def test_a_label_is_the_kernels_to_refuse(folder: Path) -> None:
    """It reaches the kernel: without a policy this one knows no such option."""
    _, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target)
    unmount(target)
    with pytest.raises(OSError, match="context") as refused:
        mount_erofs(path, devices, target, label=selinux.READ_BY_CONTAINERS)
    assert refused.value.errno == errno.EINVAL
    assert entry_at(target) is None


@root
def test_an_image_without_its_devices_shows_no_bytes(folder: Path) -> None:
    """The kernel mounts it, and looks for the files' bytes in the image itself."""
    _, path, devices = image_in(folder, b"x" * 600)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target)
    unmount(target)
    mount_erofs(path, [], target)
    with pytest.raises(OSError, match="Input/output error"):
        (target / "d" / "f").read_bytes()


@root
def test_the_kernels_log_of_a_mount_is_in_the_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    mounted_or_skipped(path, devices, target)
    unmount(target)
    fsconfig = mounts._fsconfig
    monkeypatch.setattr(
        mounts, "_fsconfig", lambda c, n, key, v: fsconfig(c, n, "gibberish" if key == "ro" else key, v)
    )
    with pytest.raises(OSError, match="Invalid argument; e erofs: Unknown parameter 'gibberish'"):
        mount_erofs(path, devices, target)


@root
def test_a_device_may_have_the_longest_path_that_the_kernel_takes(folder: Path) -> None:
    _, path, devices = image_in(folder)
    (target,) = made(folder, "target")
    longest = folder / ("x" * (254 - len(str(folder))))
    assert len(str(longest)) == 255
    devices[0].rename(longest)
    mounted_or_skipped(path, [longest], target)
    assert (target / "d" / "f").read_bytes() == b"content"


@root
def test_thousands_of_devices(folder: Path) -> None:
    toc = toc_of_raw("f", 100 << 30, 0o644, 0)
    segments = cut(toc)
    image = write_image(merge([toc]), [segments])
    target, store = made(folder, "target", "store")
    (folder / "image").write_bytes(image.bytes)
    devices = [store / str(n) for n in range(len(segments))]
    for device in devices:
        device.touch()
    devices[-1].write_bytes(b"end".rjust(segments[-1].length, b"-"))
    assert len(devices) == 3201
    mounted_or_skipped(folder / "image", devices, target)

    with (target / "f").open("rb") as file:
        assert os.pread(file.fileno(), 100, toc.length - 3) == b"end"
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 100, 0)


@root
def test_other_threads_run_while_the_kernel_opens_the_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's moments fall inside the one call that opens 12,801 devices: it drops the GIL. Holding it, none
    ever could; dropping it, the scheduler decides, so it is given many tries.
    """
    toc = toc_of_raw("f", 400 << 30, 0o644, 0)
    segments = cut(toc)
    device, target = folder / "device", folder / "target"
    (folder / "image").write_bytes(write_image(merge([toc]), [segments]).bytes)
    device.touch()
    target.mkdir()
    moments: list[int] = []
    calls: list[tuple[int, int]] = []
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            moments.append(time.monotonic_ns())
            time.sleep(0)

    def timed(context: int, command: int, key: str | None, value: bytes | None) -> None:
        start = time.monotonic_ns()
        fsconfig(context, command, key, value)
        if command == mounts._CREATE:
            calls.append((start, time.monotonic_ns()))

    fsconfig = mounts._fsconfig
    monkeypatch.setattr(mounts, "_fsconfig", timed)
    thread = threading.Thread(target=spin, name="spin")
    thread.start()
    try:
        for _ in range(100):
            mounted_or_skipped(folder / "image", [device] * len(segments), target)
            unmount(target)
            start, end = calls[-1]
            # Two, since the thread may note one moment after the call began and before the GIL is taken.
            if sum(start < moment < end for moment in moments) > 2:
                return
            moments.clear()
    finally:
        done.set()
        thread.join()
    pytest.fail("no other thread ran in any of 100 calls")


@root
def test_a_bind_shows_the_same_files_through_its_own_mount(folder: Path) -> None:
    source, target = made(folder, "source", "target")
    bind(source, target)
    (target / "f").write_text("written")
    assert (source / "f").read_text() == "written"
    assert mount_id_unique(target) != mount_id_unique(source)
    assert mount_id_unique(target / "f") == mount_id_unique(target)
    assert filesystem_uuid(target) == filesystem_uuid(source)


@root
def test_a_mount_gets_a_number_that_no_other_had(folder: Path) -> None:
    source, target = made(folder, "source", "target")
    numbers = set()
    for _ in range(3):
        bind(source, target)
        numbers.add(mount_id_unique(target))
        unmount(target)
    assert len(numbers) == 3


@root
@pytest.mark.parametrize(("nosuid", "nodev"), [(True, True), (False, False), (True, False)])
def test_a_read_only_bind_forbids_what_it_is_told(folder: Path, nosuid: bool, nodev: bool) -> None:
    source, target = made(folder, "source", "target")
    bind_readonly(source, target, nosuid=nosuid, nodev=nodev)
    entry = entry_at(target)
    assert entry is not None
    assert {"ro", "nosuid", "nodev"} & entry.options == {"ro"} | ({"nosuid"} if nosuid else set()) | (
        {"nodev"} if nodev else set()
    )
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "f").touch()
    (source / "f").touch()
    assert (target / "f").exists()


@root
def test_a_bind_that_fails_names_what_is_missing(folder: Path) -> None:
    (there,) = made(folder, "there")
    descriptors = open_descriptors()
    for act, source, target, named in (
        (bind, there, folder / "absent", folder / "absent"),
        (bind_readonly, folder / "absent", there, folder / "absent"),
        (bind_readonly, there, folder / "absent", folder / "absent"),
    ):
        with pytest.raises(FileNotFoundError) as failure:
            act(source, target)
        assert failure.value.filename == str(named)
    assert open_descriptors() == descriptors


@root
def test_a_private_mount_keeps_its_mounts_to_itself(folder: Path) -> None:
    shared, other, inside = made(folder, "shared", "other", "inside")
    made(shared, "point")
    bind(shared, shared)
    mounts._mount(None, shared, 1 << 20)  # MS_SHARED
    bind(shared, other)
    bind(inside, shared / "point")
    assert entry_at(other / "point") is not None
    unmount(shared / "point")
    make_private(shared)
    bind(inside, shared / "point")
    assert entry_at(other / "point") is None
    assert entry_at(shared / "point") is not None


@root
def test_a_busy_mount_goes_only_when_detached(folder: Path) -> None:
    source, target = made(folder, "source", "target")
    (source / "f").write_text("still here")
    bind(source, target)
    with (target / "f").open() as file:
        with pytest.raises(OSError, match="busy") as failure:
            unmount(target)
        assert failure.value.filename == str(target)
        unmount(target, detach=True)
        assert entry_at(target) is None
        assert file.read() == "still here"
    with pytest.raises(OSError, match="Invalid argument"):
        unmount(target)


@root
def test_mount_points_with_strange_names_are_read_back(folder: Path) -> None:
    source, target = made(folder, "so urce", "a b\tc\nd\\040#é")
    bind(source, target)
    entry = entry_at(target)
    assert entry is not None
    assert entry.root.endswith("/so urce")


def test_a_line_of_mountinfo() -> None:
    line = r"36 35 98:0 /mnt\0401 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/ro\134ot rw,errors=continue"
    assert mounts._entry(line) == MountEntry(
        36,
        35,
        "98:0",
        "/mnt 1",
        "/mnt2",
        frozenset({"rw", "noatime"}),
        "ext3",
        r"/dev/ro\ot",
        frozenset({"rw", "errors=continue"}),
    )


def test_every_mount_of_this_machine_is_read() -> None:
    entries = mountinfo()
    assert "/" in {entry.mount_point for entry in entries}
    assert len({entry.mount_id for entry in entries}) == len(entries)


def test_a_file_system_without_a_uuid_has_none() -> None:
    assert filesystem_uuid(Path("/proc")) is None
    with pytest.raises(FileNotFoundError):
        filesystem_uuid(Path("/proc/absent"))
