"""An ordinary user: `make demo` from a clean clone, and `serve --user` with models in plain folders of the user's own.

Everything is asked and read as a user made for these tests. Must-show 6 of issue 3.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.lab.account import Account
from tests.lab.backends import DIRECTORY, FUSE
from tests.lab.check import settled
from tests.lab.content import Generated
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.program import Program, wait_until
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.system.user_stage import (
    MIB,
    READ_ONLY,
    Stage,
    held,
    modelvold,
    ok,
    stage_of,
    user_with_registry,
)

pytestmark = [pytest.mark.system, pytest.mark.alone]

#: What holds for a user by whichever backend.
both = pytest.mark.parametrize("stage", [DIRECTORY, FUSE], indirect=True, ids=str)


@pytest.fixture(scope="module")
def user_and_registry() -> Iterator[tuple[Account, Registry, Pushed]]:
    with user_with_registry() as made:
        yield made


@pytest.fixture(scope="module")
def user(user_and_registry: tuple[Account, Registry, Pushed]) -> Account:
    return user_and_registry[0]


@pytest.fixture
def stage(user_and_registry: tuple[Account, Registry, Pushed], request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage_of(*user_and_registry, getattr(request, "param", DIRECTORY)) as made:
        yield made


@both
def test_make_demo(stage: Stage) -> None:
    """Must-show 6: `make demo` in a clean clone, by a user made for this test; lazily where `fusermount3` works, and else with the line
    that says what brings it."""
    user = stage.user
    ran = user.run("make", "demo", f"VENV={user.venv}", environment={"PATH": stage.path()})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = ran.stdout
    of_backend = (
        ["the model is read while its bytes arrive, from a mount of `fusermount3`", "prefetch is off"]
        if stage.backend.is_lazy
        else ["not here, fusermount3 is not on PATH; it takes fusermount3, from the package fuse3"]
    )
    for line in (
        f"without root: no containerd, and the backend `{stage.backend}`",
        *of_backend,
        "packed and pushed 91,617,632 bytes",
        "modelvold pull: present, durable, verified",
        "every file read, all checksums right",
        "mounted a second time",
        "refuses to be written",
        f"backend:    {stage.backend} (",
        "freed 87.4 MiB",
        "Everything was stopped and removed.",
    ):
        assert line in shown, shown
    assert list(user.home.iterdir()) == []


@both
def test_the_usual_places(stage: Stage) -> None:
    """With nothing set but HOME: store, socket and links are in the user's home, and every verb finds them there."""
    home = stage.user.own(stage.folder / "home")
    places = {"HOME": str(home), "PATH": stage.path()}
    here, reference = stage.here(), stage.pushed.reference

    def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return modelvold(stage.user, *words, **places)

    def ok(*words: str | Path) -> str:
        ran = cli(*words)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    socket = home / ".local/state/modelvold/run/modelvold.sock"
    serve = Program(
        "modelvold-home",
        [*stage.user.python.words, "-m", "modelvold", "serve", "--user"],
        stage.folder / "daemon.log",
        socket.exists,
        {**stage.user.environment, **places},
    )
    with serve:
        ok("pull", reference)
        report = json.loads(ok("status", "--json"))
        assert report["node"]["store"] == str(home / ".local/share/modelvold")
        assert (report["node"]["backend"], report["node"]["facade"]) == (stage.backend.name, "")
        assert [volume["state"] for volume in report["volumes"]] == ["verified"]
        ok("mount", reference, here)
        stage.look(here)
        mount = f"{socket.parent}/fuse"
        assert [entry.point for entry in mounted(stage.user.folder)] == [mount] * stage.backend.is_lazy

        second = cli("serve", "--user")
        assert second.returncode == 1
        assert "another modelvold holds it" in second.stderr
        in_use = cli("rm", reference)
        assert (in_use.returncode, f"folder {here}" in in_use.stderr) == (1, True)

        ok("umount", here)
        assert here.is_dir()
        assert not here.is_symlink()
        assert list(here.iterdir()) == []
        ok("rm", reference)
        assert held(home / ".local/share/modelvold") == []
    assert [path.name for path in socket.parent.iterdir()] == ["volumes"]
    assert {path.name for path in home.iterdir()} == {".local"}


def test_killed_while_fetching_and_while_files_are_made_whole(stage: Stage) -> None:
    """kill -9 in the middle of either: what was recorded is kept, a second mount ends with every byte right, and the disk
    holds the model once all along.
    """
    here, reference, size = stage.here(), stage.pushed.reference, stage.pushed.size
    with stage.daemon(fetch={"connections": 2}) as daemon, _watched(daemon.root) as use:
        with _asking(stage, daemon, "mount", reference, here) as failed:
            assert wait_until(lambda: _bytes(_segments(daemon.root)) > size // 4, 60)
            daemon.kill9()
        assert 0 < _bytes(_segments(daemon.root)) < size
        assert failed() == 1
        assert list(here.iterdir()) == []

        daemon.start()
        with _asking(stage, daemon, "mount", reference, here) as failed:
            assert wait_until(lambda: _bytes(_whole(daemon.root)) > size // 4, 60)
            daemon.kill9()
        assert size // 4 < _bytes(_whole(daemon.root)) < size
        assert _bytes(_segments(daemon.root)) > size // 10
        assert failed() == 1

        stage.registry.forget()
        daemon.start()
        ok(daemon, "mount", reference, here)
        assert stage.registry.blob_requests() == []
        assert _bytes(_segments(daemon.root)) == 0
        stage.look(here)
        daemon.kill9()
        stage.look(here)
        daemon.start()
        assert "verified" in ok(daemon, "status")
        assert _disk_use(daemon.root) <= 1.05 * size
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []
    assert size < use.most <= 1.05 * size + 64 * MIB


@both
def test_after_a_reboot(stage: Stage) -> None:
    """The runtime folder is empty after one: models are where they were, with the daemon again, and without it what is a plain folder."""
    here, again, reference = stage.here(), stage.user.own(stage.folder / "again"), stage.pushed.reference
    with stage.daemon() as daemon:
        ok(daemon, "mount", reference, here)
        daemon.kill9()
        _reboot(stage, daemon)
        if not stage.backend.is_lazy:
            stage.look(here)
        daemon.start()
        stage.look(here)
        assert json.loads(ok(daemon, "status", "--json"))["volumes"][0]["consumers"] == [f"folder {here}"]
        ok(daemon, "mount", reference, again)
        stage.look(again)
        for place in (here, again):
            ok(daemon, "umount", place)
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []


def test_a_full_disk(stage: Stage) -> None:
    """Full while it fetches, and again while files are made whole: it says so, and goes on when there is room."""
    size = stage.pushed.size
    here, reference = stage.here(), stage.pushed.reference
    with _small_disk(stage, size + 32 * MIB) as disk, stage.daemon(disk) as daemon:
        ballast = disk / "ballast"

        def refused(room: int) -> tuple[str, str, dict[str, Any]]:
            """With `room` bytes for models; the message, the remedy, and the status then."""
            _fill(ballast, max(0, room - _bytes(_segments(daemon.root))))
            ran = daemon.cli("mount", reference, here)
            assert (ran.returncode, list(here.iterdir())) == (1, [])
            said, remedy = ran.stderr.splitlines()[-2:]
            return said, remedy, json.loads(ok(daemon, "status", "--json"))

        said, remedy, status = refused(size // 2)
        assert ("no room for" in said, "make room" in remedy) == (True, True)
        assert status["node"]["store_state"] == "ok"
        said, remedy, status = refused(size + 10 * MIB)
        assert ("No space left on device" in said, "make room" in remedy) == (True, True)
        assert status["volumes"][0]["state"] == "verified"
        ballast.unlink()
        ok(daemon, "mount", reference, here)
        stage.look(here)
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []


def test_a_start_on_a_full_disk(stage: Stage) -> None:
    """A store keeps room for it; where even that is gone it says so, and what was shown is shown."""
    here = stage.here()
    small = stage.registry.push.model({"a.bin": Generated(8 * MIB, 5)}, "models/small")
    with _small_disk(stage, 40 * MIB) as disk, stage.daemon(disk) as daemon:
        ok(daemon, "mount", small.reference, here)
        daemon.stop()
        _fill(disk / "ballast", 0)
        daemon.start()
        assert json.loads(ok(daemon, "status", "--json"))["node"]["store_state"] == "ok"
        daemon.stop()
        (daemon.root / "ballast").unlink()
        for room, why in ((0, "its disk has 0 bytes free"), (256 << 10, "No space left on device")):
            _fill(disk / "ballast", room)
            failed = modelvold(stage.user, "serve", "--user", **_places(disk))
            said, remedy = failed.stderr.splitlines()
            assert failed.returncode == 1
            assert (str(daemon.root) in said, why in said, "make room" in remedy) == (True, True, True)
        assert (here / "a.bin").stat().st_size == 8 * MIB
        (disk / "ballast").unlink()
        daemon.start()
        ok(daemon, "umount", here)


@both
def test_tars_that_root_alone_could_read(stage: Stage) -> None:
    """Modes without any bit, as some programs write them: the user reads all of it, and can have it removed."""
    here = stage.here()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, mode in (
            ("d", tarfile.DIRTYPE, 0),
            ("d/e", tarfile.DIRTYPE, 0o300),
            ("d/e/f", tarfile.REGTYPE, 0),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.size, entry.uid = kind, mode, 5 if kind == tarfile.REGTYPE else 0, 4711
            tar.addfile(entry, io.BytesIO(b"bytes"))
    pushed = stage.registry.push.layers([_Tar(buffer.getvalue())], "models/closed")
    with stage.daemon() as daemon:
        ok(daemon, "mount", pushed.reference, here)
        assert stage.user.run("cat", here / "d/e/f").stdout == "bytes"
        modes = stage.user.run("stat", "--format=%a %u", here / "d/e/f", here / "d", here / "d/e").stdout
        assert modes.split() == ["400", str(stage.user.uid), "500", str(stage.user.uid), "500", str(stage.user.uid)]
        ok(daemon, "umount", here)
        ok(daemon, "rm", pushed.reference)
        assert held(daemon.root) == []


@both
def test_a_place_that_is_not_empty_or_not_ours(stage: Stage) -> None:
    here = stage.here()
    with stage.daemon() as daemon:
        (here / "mine").touch()
        for place in (here, Path("/mnt")):
            refused = daemon.cli("mount", stage.pushed.reference, place)
            assert refused.returncode == 1
            assert "it must be an empty folder that you may write" in refused.stderr
        assert (here / "mine").exists()
        (here / "mine").unlink()
        ok(daemon, "mount", stage.pushed.reference, here)
        taken = daemon.cli("mount", stage.pushed.reference, here)
        assert f"`modelvold umount {here}` first" in taken.stderr
        ok(daemon, "umount", here)
        # Of two that wait for one folder the first has it.
        other = stage.registry.push.model({"b.bin": Generated(MIB, 6)}, "models/other")
        with _asking(stage, daemon, "mount", other.reference, here) as first:
            second = daemon.cli("mount", stage.pushed.reference, here).returncode
        assert sorted((first(), second)) == [0, 1]
        ok(daemon, "umount", here)
        # Who takes the link away by hand has unmounted it.
        ok(daemon, "mount", stage.pushed.reference, here)
        here.unlink()
        ok(daemon, "umount", here)


def test_what_is_refused_says_why_and_what_next(stage: Stage) -> None:
    """A sentence and a next step, and nothing else."""
    home = stage.user.own(stage.folder / "home")
    locked = stage.folder / "locked"
    locked.mkdir()
    others = stage.folder / "others"
    (others / "content").mkdir(parents=True)
    for words, said, then in (
        (["serve"], "modelvold serve needs root", "`modelvold serve --user` needs none"),
        (
            ["status"],
            f"there is no socket {home}/.local/state/modelvold/run/",
            "start your own with `modelvold serve --user`",
        ),
        (
            ["serve", "--user", "--root", locked / "store"],
            f"store {locked}/store: Permission denied",
            "--root or `[store] root`",
        ),
        (["serve", "--user", "--root", others], f"store {others}", "must be allowed to write it"),
        (
            ["serve", "--user", "--run", locked / "run"],
            f"run folder {locked}/run: Permission denied",
            "--run or XDG_RUNTIME_DIR",
        ),
    ):
        ran = modelvold(stage.user, *words, HOME=str(home))
        lines = [line for line in ran.stderr.splitlines() if " INFO " not in line]
        assert (ran.returncode, len(lines)) == (1, 2), ran.stderr
        assert lines[0].startswith("modelvold: ")
        assert said in lines[0]
        assert then in lines[1]


def test_root_serves_itself(stage: Stage) -> None:
    """`--user` by root: root's own folders, no doors of containerd's, and the best backend that works here."""
    folder = stage.folder / "root"
    folder.mkdir()
    here = folder / "model"
    here.mkdir()
    with Daemon(folder, for_user=True) as daemon:
        at = ("--address", daemon.socket)
        ok(daemon, "mount", stage.pushed.reference, here, *at)
        with (here / "config.json").open("rb") as file:
            assert file.read() == b"{}"
        with pytest.raises(OSError, match=READ_ONLY):
            (here / "new").touch()
        report = json.loads(ok(daemon, "status", "--json", *at))
        assert (report["node"]["store"], report["node"]["facade"]) == (str(daemon.root), "")
        with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
            call = channel.unary_unary("/containerd.services.snapshots.v1.Snapshots/Cleanup")
            with pytest.raises(grpc.RpcError) as unknown:
                call(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
        ok(daemon, "umount", here, *at)
        ok(daemon, "rm", stage.pushed.reference, *at)


def test_the_demo_of_a_root_that_may_not_mount(user: Account) -> None:
    """As in most containers: it takes the user's walk, and says so."""
    words: list[str | Path] = ["setpriv", "--bounding-set=-sys_admin", user.venv / "bin/python", "-m", "tests.demo"]
    temporary = user.folder / "root"
    temporary.mkdir()
    with settled(user.folder):
        environment = {**os.environ, **user.environment, "TMPDIR": str(temporary)}
        ran = subprocess.run(
            words, cwd=user.clone, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no pod that reads it lazily on this machine: " in ran.stdout
    assert "backend:    directory (" in ran.stdout
    assert "root could write to it" in ran.stdout
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


# -- how


@dataclass(frozen=True, slots=True)
class _Tar:
    content: bytes
    is_tar: bool = True
    path: str = ""
    mode: int = 0
    mtime: int = 0


@dataclass(slots=True)
class _Use:
    """Of a store's disk, in bytes."""

    most: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


def _reboot(stage: Stage, daemon: Daemon) -> None:
    """No process, mount or runtime folder of the user's is there any more."""
    for pid in [int(named.split()[1]) for named in stage.user.running()]:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not stage.user.running())
    unmount_below(daemon.run)
    shutil.rmtree(daemon.run)


@contextmanager
def _watched(root: Path) -> Iterator[_Use]:
    use = _Use()

    def watch() -> None:
        while not use.ended.wait(0.01):
            use.most = max(use.most, _disk_use(root))

    thread = threading.Thread(target=watch, name="du")
    thread.start()
    try:
        yield use
    finally:
        use.ended.set()
        thread.join()


@contextmanager
def _asking(stage: Stage, daemon: Daemon, *words: str | Path) -> Iterator[Callable[[], int]]:
    """`modelvold WORDS…` while the block runs; gives its exit status after it."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(daemon.cli(*words).returncode), name="asking")
    thread.start()
    try:
        yield lambda: status[0]
    finally:
        thread.join()


@contextmanager
def _small_disk(stage: Stage, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, the user's."""
    disk = stage.user.own(stage.folder / "disk")
    words: list[str | Path] = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={size},uid={stage.user.uid},mode=700",
        "small",
        disk,
    ]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no small disk: {made.stderr.strip()}")
    with ExitStack() as stack:
        stack.callback(unmount_below, disk)
        yield disk


def _fill(ballast: Path, room: int) -> None:
    """So that `room` bytes are free beside it."""
    ballast.unlink(missing_ok=True)
    disk = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        if (taken := disk.f_bavail * disk.f_frsize - room) > 0:
            os.posix_fallocate(file.fileno(), 0, taken)


def _places(folder: Path) -> dict[str, str]:
    return {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
    }


def _segments(root: Path) -> list[Path]:
    return [path for path in _below(root / "content") if path.name.isdigit() and path.parent.name != "whole"]


def _whole(root: Path) -> list[Path]:
    return [path for path in _below(root / "content") if path.parent.name == "whole"]


def _below(folder: Path) -> list[Path]:
    """Its files, while others come and go."""
    return [Path(above, name) for above, _, names in os.walk(folder) for name in names]


def _bytes(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _disk_use(root: Path) -> int:
    """As du(1) counts: a file of several names once."""
    blocks: dict[int, int] = {}
    for above, folders, names in os.walk(root):
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                status = Path(above, name).lstat()
                blocks[status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())
