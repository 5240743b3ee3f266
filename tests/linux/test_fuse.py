"""The protocol's structures against the kernel's header, and mounts by root and by somebody else. What a mount shows is in
tests/mount/fuse."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from modelvold.linux import fuse
from modelvold.linux.fuse import Attributes, Init, Request
from modelvold.linux.mounts import mountinfo
from modelvold.linux.selinux import is_active

from tests.lab.check import settled

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
NOBODY = 65534

#: Mounts at its argument as nobody, answers what it takes for one LOOKUP, and says how it went.
_SOMEBODY = f"""
import errno, os, sys, threading
from pathlib import Path
from modelvold.linux import fuse
target = Path(sys.argv[1])
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
device = fuse.mount_user(target)
def serve():
    room = bytearray(fuse.ROOM)
    while True:
        try:
            request = fuse.take(device, room)
        except OSError as error:
            return print(errno.errorcode[error.errno])
        if request.opcode == fuse.Opcode.INIT:
            flags = fuse.init_in(room, request).flags & (fuse.Init.MAX_PAGES | fuse.Init.INIT_EXT | fuse.Init.ALLOW_IDMAP)
            fuse.reply(device, request.unique, fuse.init_out(flags, fuse.READAHEAD))
        elif request.opcode == fuse.Opcode.LOOKUP:
            print(fuse.name_in(room, request).decode(), flush=True)
            fuse.refuse(device, request.unique, errno.ENOENT)
        elif request.opcode == fuse.Opcode.GETATTR:
            fuse.reply(device, request.unique, fuse.attr_out(fuse.Attributes(fuse.ROOT, 0o40755, 0, 0, 0, 0, 2), 1))
        else:
            fuse.refuse(device, request.unique, errno.ENOSYS)
thread = threading.Thread(target=serve, daemon=True)
thread.start()
(target / "name").exists()
fuse.unmount_user(target, detach=len(sys.argv) > 2)
thread.join()
os.close(device)
"""


def test_structures_have_the_headers_sizes() -> None:
    attributes = Attributes(1, 0o40755, 0, 0, 0, 0, 2)
    assert fuse.ARGUMENTS == 40
    assert len(fuse.init_out(Init(0), 0)) == 64
    assert len(fuse.attr_out(attributes, 1)) == 104
    assert len(fuse.entry_out(attributes, 1, 1)) == len(fuse.no_entry_out(1)) == len(fuse.no_attributes()) == 128
    assert len(fuse.open_out(1, fuse.Open(0))) == 16
    assert len(fuse.statfs_out(1, 512)) == 80
    assert [len(fuse.dirent(1, 1, 8, b"n" * length)) for length in (1, 8, 9)] == [32, 32, 40]


def test_the_kernels_own_header_says_the_same(tmp_path: Path) -> None:
    if not shutil.which("cc") or not Path("/usr/include/linux/fuse.h").exists():
        pytest.skip("no compiler, or no headers of the kernel (linux-libc-dev)")
    names = (
        "in_header",
        "out_header",
        "init_out",
        "attr_out",
        "entry_out",
        "open_out",
        "statfs_out",
        "read_in",
        "attr",
        "dirent",
    )
    prints = "".join(f'printf("%zu ", sizeof(struct fuse_{name}));' for name in names)
    source = tmp_path / "sizes.c"
    headers = "".join(f"#include <{header}>\n" for header in ("stdint.h", "stdio.h", "sys/ioctl.h", "linux/fuse.h"))
    source.write_text(f'{headers}int main(void) {{ {prints} printf("%lu", FUSE_DEV_IOC_CLONE); }}')
    subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True)
    said = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert [int(size) for size in said.split()] == [40, 16, 64, 104, 128, 16, 80, 40, 88, 24, fuse._CLONE]


def test_the_upper_flags_are_read_where_they_are_offered() -> None:
    room = bytearray(fuse.ROOM)
    struct.pack_into("=5I", room, fuse.ARGUMENTS, 7, 45, 131072, Init.INIT_EXT, 1 << 8)
    assert fuse.init_in(room, Request(0, 0, 26, 0, 0, 64)).flags == Init.INIT_EXT | Init.ALLOW_IDMAP
    assert fuse.init_in(room, Request(0, 0, 26, 0, 0, 16)).flags == Init.INIT_EXT
    flags = struct.unpack_from("=4I2H2I2HI", fuse.init_out(Init.INIT_EXT | Init.ALLOW_IDMAP, 1 << 20))
    assert (flags[3], flags[-1]) == (Init.INIT_EXT, 1 << 8)


@root
def test_root_mounts_and_the_end_of_its_descriptor_is_the_mounts(tmp_path: Path) -> None:
    with settled(tmp_path):
        device = fuse.mount_root(tmp_path)
        try:
            # nobody answers it: what asks for the path would wait
            (mount,) = [entry for entry in mountinfo() if entry.mount_point == str(tmp_path)]
            assert (mount.fs_type, mount.source) == (fuse.FS_TYPE, str(tmp_path))
            assert {"ro", "nosuid", "nodev"} <= mount.options
            os.close(fuse.clone(device))
            os.close(device)
            with pytest.raises(OSError) as caught:
                (tmp_path / "x").stat()
            assert caught.value.errno == errno.ENOTCONN
        finally:
            fuse.unmount_root(tmp_path, detach=True)


@root
def test_a_mount_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with settled(tmp_path):
        with pytest.raises(OSError) as caught:
            fuse.mount_root(tmp_path / "missing")
        assert caught.value.errno == errno.ENOENT
        if not is_active():
            with pytest.raises(OSError) as caught:
                fuse.mount_root(tmp_path, label="system_u:object_r:container_file_t:s0:c1,c2")
            assert caught.value.errno == errno.EINVAL
        assert not [entry for entry in mountinfo() if entry.mount_point == str(tmp_path)]


@pytest.mark.skipif(not shutil.which("fusermount3"), reason="no fusermount3; apt install fuse3")
@pytest.mark.parametrize("more", [(), ("detach",)], ids=["unmounted", "detached"])
@root
def test_somebody_else_mounts_through_fusermount3(more: tuple[str, ...]) -> None:
    if not Path("/dev/fuse").stat().st_mode & 0o002:
        pytest.skip("/dev/fuse is root's alone here")
    with owned_by_nobody() as folder, settled(folder):
        command = [sys.executable, "-c", _SOMEBODY, folder, *more]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (ran.stdout.split(), ran.stderr) == (["name", "ENODEV"], "")


@pytest.mark.skipif(not shutil.which("fusermount3"), reason="no fusermount3; apt install fuse3")
def test_a_refusal_of_fusermount3_has_its_words(tmp_path: Path) -> None:
    with settled(tmp_path):
        with pytest.raises(OSError, match=r"fusermount3: .*missing") as caught:
            fuse.mount_user(tmp_path / "missing")
        assert caught.value.errno == errno.EPERM
        with pytest.raises(OSError, match="fusermount3: ") as caught:
            fuse.unmount_user(tmp_path)
        assert caught.value.errno == errno.EBUSY


def test_without_fusermount3_that_is_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with settled(tmp_path), pytest.raises(FileNotFoundError, match="fusermount3"):
        fuse.mount_user(tmp_path)


@contextmanager
def owned_by_nobody() -> Iterator[Path]:
    """A folder that a user without privileges can reach and mount on."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        Path(top).chmod(0o755)
        folder = Path(top) / "mount"
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        yield folder
