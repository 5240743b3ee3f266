"""`serve --user` by FUSE: what is read comes lazily, without root, and goes on whoever of the two is killed.

Everything is read as a user made for these tests; root, who runs them, may not even look into the user's mounts.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from tests.lab.account import Account
from tests.lab.backends import DIRECTORY, FUSE
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.reader import Piece, check
from tests.lab.registry import Registry
from tests.system.user_stage import FILES, MIB, Stage, held, modelvold, ok, stage_of, status, user_with_registry

pytestmark = [pytest.mark.system, pytest.mark.alone]

_WEIGHTS = [content for name, content in FILES.items() if name.startswith("weights/")]
#: The longest piece that is fetched at once.
_SEGMENT = 16 * MIB
#: Of the first weights, the first piece; of each of the others a later one.
_FIRST = [Piece(0, 4096, MIB), Piece(0, 4096, MIB, is_mapped=True)]
_OTHERS = [Piece(1, 20 * MIB, MIB), Piece(2, 40 * MIB, MIB, is_mapped=True)]


@pytest.fixture(scope="module")
def user_and_registry() -> Iterator[tuple[Account, Registry, Pushed]]:
    with user_with_registry() as made:
        yield made


@pytest.fixture
def stage(user_and_registry: tuple[Account, Registry, Pushed]) -> Iterator[Stage]:
    with stage_of(*user_and_registry, FUSE) as made:
        yield made


def source(file: int, at: int, length: int) -> bytes:
    return _WEIGHTS[file].at(at, length)


def process(daemon: Daemon) -> int:
    """The pid of the one that serves FUSE now."""
    lines = [
        line for line in daemon.log_text().splitlines() if ": start process=" in line or ": adopt process=" in line
    ]
    return int(lines[-1].partition("process=")[2].split()[0])


def devices(daemon: Daemon) -> list[int]:
    return [mount.id for mount in mounted(daemon.run)]


def test_a_model_is_read_while_its_bytes_arrive(stage: Stage) -> None:
    here, again, reference = stage.here(), stage.here("again"), stage.pushed.reference
    with stage.daemon(fetch={"prefetch": False}) as daemon:
        stage.registry.forget()
        ok(daemon, "mount", reference, here)
        ok(daemon, "mount", reference, again)
        assert stage.registry.bytes_served() < MIB
        assert here.readlink() == again.readlink() == daemon.run / "fuse" / status(daemon)["volumes"][0]["id"]
        with pytest.raises(PermissionError):  # to root, as to everybody but the user
            (here / "config.json").stat()
        with stage.reader(here) as reader:
            assert check(_FIRST, reader.read(_FIRST), source) == (_FIRST, [])
            assert stage.registry.bytes_served() < 2 * _SEGMENT
            (volume,) = status(daemon)["volumes"]
            assert (volume["state"], volume["backend"]) == ("lazy", "fuse")
        stage.look(here)
        stage.look(again)
        ok(daemon, "pull", reference)
        assert status(daemon)["volumes"][0]["state"] == "verified"
        for place in (here, again):
            ok(daemon, "umount", place)
            assert list(place.iterdir()) == []
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []
    assert [path.name for path in daemon.run.iterdir()] == ["volumes"]


def test_what_is_open_stays(stage: Stage) -> None:
    """Who unmounts takes the link away, under whoever reads; the model goes when nobody reads it any more."""
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon(fetch={"prefetch": False}) as daemon:
        ok(daemon, "mount", reference, here)
        with stage.reader(here) as reader:
            ok(daemon, "umount", here)
            refused = daemon.cli("rm", reference)
            assert (refused.returncode, "files of it are open" in refused.stderr) == (1, True), refused.stderr
            assert check(_FIRST, reader.read(_FIRST), source) == (_FIRST, [])
        assert wait_until(lambda: daemon.cli("rm", reference).returncode == 0, 10)
        assert held(daemon.root) == []


def test_the_daemon_is_killed_and_back(stage: Stage) -> None:
    """What is here is read on meanwhile; what is missing waits, and comes from the next daemon, on the same mount."""
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon(fetch={"prefetch": False}) as daemon:
        ok(daemon, "mount", reference, here)
        with stage.reader(here) as early, stage.reader(here) as waiting:
            assert check(_FIRST, early.read(_FIRST), source) == (_FIRST, [])
            mount, pid = devices(daemon), process(daemon)
            assert wait_until(lambda: status(daemon)["volumes"][0]["segments_complete"] > 0)
            asked = [Piece(0, 12 * MIB, 1)]
            assert check(asked, early.read(asked), source) == (asked, [])
            daemon.kill9()
            present = [Piece(0, 2 * MIB, MIB), *_FIRST]
            assert check(present, early.read(present), source) == (present, [])
            waiting.ask(_OTHERS)
            assert not waiting.has_answered(1)
            daemon.start()
            assert check(_OTHERS, waiting.answers(60), source) == (_OTHERS, [])
            assert (devices(daemon), process(daemon)) == (mount, pid)
        stage.look(here)
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)


def test_without_a_daemon_missing_bytes_are_an_error_in_the_end(stage: Stage) -> None:
    here = stage.here()
    with stage.daemon(fetch={"prefetch": False, "deadline": 2.0}) as daemon:
        ok(daemon, "mount", stage.pushed.reference, here)
        with stage.reader(here) as reader:
            daemon.stop()
            assert check(_OTHERS, reader.read(_OTHERS), source) == ([], _OTHERS)
            daemon.start()
            assert check(_OTHERS, reader.read(_OTHERS), source) == (_OTHERS, [])
        ok(daemon, "umount", here)
        ok(daemon, "rm", stage.pushed.reference)


@pytest.mark.parametrize("with_daemon", [False, True])
def test_the_process_is_killed_and_back(stage: Stage, with_daemon: bool) -> None:
    """Who had its mount has what the page cache has, and else ENOTCONN, and must open anew; the same path leads to the new mount."""
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon(fetch={"prefetch": False}) as daemon:
        ok(daemon, "mount", reference, here)
        with stage.reader(here) as before:
            assert check(_FIRST, before.read(_FIRST), source) == (_FIRST, [])
            pid = process(daemon)
            if with_daemon:
                daemon.kill9()
            os.kill(pid, signal.SIGKILL)
            if with_daemon:
                daemon.start()
            assert wait_until(lambda: process(daemon) != pid, 20)
            assert wait_until(lambda: stage.user.run("test", "-d", f"{here}/weights").returncode == 0, 20)
            assert check(_FIRST, before.read(_FIRST), source) == (_FIRST, [])
            dead = [Piece(1, 20 * MIB, MIB), Piece(2, 40 * MIB, MIB, is_mapped=True)]
            assert check(dead, before.read(dead), source, (errno.ENOTCONN, errno.EIO)) == ([], dead)
            stage.look(here)
        assert len(mounted(daemon.run)) == 1
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []


def test_a_model_that_is_shown_at_the_end(stage: Stage) -> None:
    """It is shown on by its process, without a daemon; the next one finds it, and may end it."""
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon() as daemon:
        ok(daemon, "mount", reference, here)
        ok(daemon, "pull", reference)
        daemon.stop()
        stage.look(here)
        daemon.start()
        stage.look(here)
        assert status(daemon)["volumes"][0]["consumers"] == [f"folder {here}"]
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)


def test_the_next_daemon_speaks_another_version(stage: Stage) -> None:
    """The old process serves on what is here to those who have it, and ends with them; everybody else has the new one's mount."""
    here, reference = stage.here(), stage.pushed.reference
    source_of_version = stage.user.clone / "daemon/modelvold/mount/fuse/wire.py"
    before = source_of_version.read_text()
    with stage.daemon(fetch={"prefetch": False, "deadline": 2.0}) as daemon:
        ok(daemon, "mount", reference, here)
        with stage.reader(here) as reader:
            assert check(_FIRST, reader.read(_FIRST), source) == (_FIRST, [])
            old = process(daemon)
            daemon.stop()
            source_of_version.write_text(before.replace("\nVERSION = 1\n", "\nVERSION = 2\n"))
            try:
                daemon.start()
                assert process(daemon) != old
                stage.look(here)
                assert check(_FIRST, reader.read(_FIRST), source) == (_FIRST, [])
                missing = [Piece(1, 20 * MIB, MIB)]
                assert check(missing, reader.read(missing), source) == ([], missing)
                ok(daemon, "umount", here)
                ok(daemon, "rm", reference)
                daemon.stop()
            finally:
                source_of_version.write_text(before)
            assert [f"pid {old}" in named for named in stage.user.running()].count(True) == 1
        assert wait_until(lambda: not stage.user.running(), 10)


def test_a_daemon_that_was_killed_while_it_tried_fuse(stage: Stage) -> None:
    """Its trial's mount is dead: the next one takes it away."""
    left = stage.user.own(stage.folder / "runtime/modelvold") / "probe-1"
    script = (
        "import os, signal, sys; from pathlib import Path; from modelvold.mount.fuse import mounting; "
        "point = Path(sys.argv[1]); point.mkdir(parents=True); mounting.mount(point); os.kill(os.getpid(), signal.SIGKILL)"
    )
    stage.user.own(left.parent.parent)
    stage.user.run(stage.user.venv / "bin/python", "-c", script, left / "fuse")
    assert [mount.point for mount in mounted(left)] == [str(left / "fuse")]
    with stage.daemon():
        assert not left.exists()


def test_a_runtime_folder_behind_a_link(stage: Stage) -> None:
    """As homes are in many places: the kernel's table has the real path, and we are asked by the other one."""
    real = stage.user.own(stage.folder / "real")
    linked = stage.folder / "linked"
    linked.symlink_to(real)
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon(linked) as daemon:
        ok(daemon, "mount", reference, here)
        stage.look(here)
        pid = process(daemon)
        daemon.restart()
        assert process(daemon) == pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: process(daemon) != pid, 20)
        assert wait_until(lambda: stage.user.run("test", "-d", f"{here}/weights").returncode == 0, 20)
        stage.look(here)
        assert len(mounted(real)) == 1
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)
    assert mounted(real) == []
    assert [path.name for path in (real / "runtime/modelvold").iterdir()] == ["volumes"]


def test_from_one_backend_to_the_other_and_back(stage: Stage) -> None:
    """What is mounted stays where it is: a plain folder as it is, and what FUSE has shown as soon as it can be shown."""
    here, reference = stage.here(), stage.pushed.reference
    with stage.daemon(mount=DIRECTORY.setting) as daemon:
        ok(daemon, "mount", reference, here)
        tree = here.readlink()
        daemon.configure("mount", **FUSE.setting)
        daemon.restart()
        assert here.readlink() == tree
        Stage(stage.user, stage.registry, stage.pushed, stage.folder, DIRECTORY).look(here)
        ok(daemon, "umount", here)
        ok(daemon, "mount", reference, here)
        stage.look(here)
        daemon.configure("mount", **DIRECTORY.setting)
        daemon.restart()
        assert mounted(daemon.run) == []
        ok(daemon, "umount", here)
        ok(daemon, "mount", reference, here)
        Stage(stage.user, stage.registry, stage.pushed, stage.folder, DIRECTORY).look(here)
        ok(daemon, "umount", here)
        ok(daemon, "rm", reference)
        assert held(daemon.root) == []


def test_where_there_is_no_fusermount3(stage: Stage) -> None:
    """A setting that asks for it says which package brings it."""
    settings = stage.user.own(stage.folder / "config/modelvold") / "config.toml"
    settings.write_text('[mount]\nbackend = "fuse"\n')
    plain = Stage(stage.user, stage.registry, stage.pushed, stage.folder, DIRECTORY)
    ran = modelvold(
        stage.user,
        "serve",
        "--user",
        "--config",
        settings,
        HOME=str(stage.user.own(stage.folder / "home")),
        PATH=plain.path(),
    )
    assert ran.returncode == 1
    said, remedy = ran.stderr.splitlines()[-2:]
    assert said.endswith("by the backend fuse: reads through FUSE: fusermount3 is not on PATH")
    assert remedy.startswith("it takes fusermount3, from the package fuse3; ")
