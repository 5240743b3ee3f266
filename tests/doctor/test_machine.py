"""Real processes on machines that lack something: capabilities, root, a durable file system, room, a free store.

What they lack is taken away in namespaces and process attributes of their own. Each leaves nothing: no mount, process or file.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.doctor import looking
from modelvold.errors import Failing

from tests.doctor.examining import HAS_CONTAINERD, PATH, ROOT, examine
from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.containerd import Containerd, Modelvold
from tests.lab.daemon import Daemon
from tests.lab.registry import Registry

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: nothing can be taken away, and no mounts made"),
]

WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
#: With the one capability that lets a stranger read the interpreter, which may lie in root's own folder.
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Empty at the end of each test but for what the test itself put there, and not held by anybody."""
    made = needs.lazy_folder()
    made.chmod(0o755)
    try:
        with settled(made):
            yield made
    finally:
        shutil.rmtree(made)


#: Which needs nothing of the store's file system, and no more of root than a user namespace has.
HAS_FUSE = Path("/dev/fuse").exists()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def places(folder: Path) -> tuple[object, ...]:
    return ("--root", folder / "store", "--run", folder / "run", "--containerd", folder / "none.toml")


def mounted_first(script: str, folder: Path) -> tuple[str, ...]:
    """The words that run the rest of a command in a mount namespace where `script` has been run in `folder`."""
    return ("unshare", "--mount", "sh", "-ec", f'cd "{folder}"; {script}; exec "$@"', "sh")


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool}: not on this machine")


def test_a_bare_machine(folder: Path) -> None:
    if reason := needs.missing_for_lazy(folder):
        pytest.skip(reason)
    examined = examine(*places(folder))
    assert tree(folder) == []
    assert examined.errors == ""
    assert examined.report.backend == "lazy"
    assert examined.line("backend").seen == "lazy, seen working"
    assert examined.line("folder").seen == f"{folder}/store, not there yet; can be made, and was tried, in {folder}"
    assert examined.line("kernel").seen == f"Linux {os.uname().release}, {os.uname().machine}"
    assert examined.line("capabilities").level == "ok"
    if not HAS_CONTAINERD:
        assert examined.line("containerd").level == "warn"
        assert examined.status == 0


def test_without_the_right_to_mount(folder: Path) -> None:
    examined = examine(*places(folder), under=WITHOUT_SYS_ADMIN)
    assert tree(folder) == []
    assert examined.report.backend == "directory"
    assert examined.line("root").level == "ok"
    assert examined.line("capabilities").seen.startswith("no CAP_SYS_ADMIN")
    assert examined.line("EROFS on files").level == "warn"
    assert examined.line("EROFS on files").seen.endswith("Operation not permitted")
    assert examined.line("backend").level == "warn"
    assert "Linux 6.12" in examined.line("backend").mend


NO_DEVICES = "mount -t tmpfs -o mode=755 tmpfs /dev; mknod -m 666 /dev/null c 1 3"


def test_without_the_device_of_fuse(folder: Path) -> None:
    """Where nothing better works it is what is missing; where `lazy` works nobody is told to have it."""
    hidden = mounted_first(NO_DEVICES, folder)
    line = examine(*places(folder), under=(*hidden, *WITHOUT_SYS_ADMIN)).line("reads through FUSE")
    assert (line.level, line.seen) == ("warn", "/dev/fuse: No such file or directory")
    assert line.mend == "it takes /dev/fuse: `modprobe fuse`; in a container, that device"
    if not needs.missing_for_lazy(folder):
        examined = examine(*places(folder), under=hidden)
        line = examined.line("reads through FUSE")
        assert (examined.report.backend, line.level) == ("lazy", "ok")
        assert line.seen == "no: /dev/fuse: No such file or directory; lazy works, and needs none of it"
    assert tree(folder) == []


def test_a_setting_that_this_machine_cannot_keep(folder: Path) -> None:
    (folder / "settings.toml").write_text('[mount]\nbackend = "lazy"\n')
    examined = examine(*places(folder), "--config", folder / "settings.toml", under=WITHOUT_SYS_ADMIN)
    assert (examined.status, examined.report.backend) == (1, "")
    assert examined.line("EROFS on files").level == examined.line("backend").level == "bad"


def test_root_of_a_user_namespace(folder: Path) -> None:
    examined = examine(*places(folder), under=("unshare", "--user", "--map-root-user", "--mount"))
    assert tree(folder) == []
    assert examined.line("root").level == "warn"
    assert examined.report.backend == ("fuse" if HAS_FUSE else "directory")


def test_somebody_else(folder: Path) -> None:
    folder.chmod(0o777)
    home = {
        "HOME": str(folder),
        "XDG_DATA_HOME": "",
        "XDG_RUNTIME_DIR": "",
        "XDG_CONFIG_HOME": "",
        "XDG_STATE_HOME": "",
        "PATH": "/nowhere",
    }
    examined = examine(under=(shutil.which("setpriv") or "setpriv", *NOBODY[1:]), **home)
    assert tree(folder) == []
    assert examined.status == 0
    assert examined.report.backend == "directory"
    if HAS_FUSE:
        assert examined.line("reads through FUSE").level == "warn"
        assert examined.line("reads through FUSE").seen == "fusermount3 is not on PATH"
        assert examined.line("reads through FUSE").mend == "it takes fusermount3, from the package fuse3"
        assert "for fuse: fusermount3, from the package fuse3" in examined.line("backend").mend
    assert examined.line("root").seen.startswith("no: user 65534")
    assert "modelvold serve --user" in examined.line("root").mend
    assert examined.line("folder").seen.startswith(f"{folder}/.local/share/modelvold, not there yet")
    assert examined.line("containerd").level == "ok"


def test_a_store_that_may_not_be_written(folder: Path) -> None:
    """The machine is looked at all the same, elsewhere."""
    examined = examine(*places(folder), under=NOBODY, HOME="/nonexistent")
    assert tree(folder) == []
    assert examined.status == 1
    assert examined.line("folder").level == "bad"
    assert "cannot be written" in examined.line("folder").seen
    assert examined.line("tried").level == "warn"
    assert examined.line("hard links in the store").level == "ok"


def test_a_store_in_memory(folder: Path) -> None:
    examined = examine(*places(folder), under=mounted_first("mkdir store; mount -t tmpfs tmpfs store", folder))
    assert tree(folder) == ["store"]
    assert examined.line("folder").seen == f"{folder}/store"
    assert "empty after a reboot" in examined.line("file system").seen
    assert examined.report.backend == ("fuse" if HAS_FUSE else "directory")
    assert "ext4" in examined.line("file system").mend


def test_a_store_on_an_overlay(folder: Path) -> None:
    script = (
        "mkdir lower upper work store; mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work store"
    )
    examined = examine(*places(folder), under=mounted_first(script, folder))
    assert {"store", "upper"} <= set(tree(folder)) <= {"lower", "store", "upper", "work", "work/work"}
    assert examined.line("file system").level == "warn"
    assert examined.line("file system").seen.startswith("overlay: not durable")
    # Without FUSE by kernel: EROFS on a file of an overlay, or none.
    assert examined.report.backend in ({"fuse"} if HAS_FUSE else {"complete", "directory"})


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_store_on_ext4(folder: Path, has_journal: bool) -> None:
    need("mkfs.ext4", "losetup")
    options = "" if has_journal else "-O ^has_journal"
    script = f"mkdir store; truncate -s 32M disk; mkfs.ext4 -q {options} disk; mount -o loop disk store"
    examined = examine(*places(folder), under=mounted_first(script, folder))
    assert tree(folder) == ["disk", "store"]
    line = examined.line("file system")
    assert line.seen.startswith("ext4 on loop")
    assert line.level == ("ok" if has_journal else "warn")
    assert ("tune2fs" in line.mend) == (not has_journal)
    assert examined.line("room").level == "warn"
    assert (
        str(folder / "disk") not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    )


def test_a_full_disk(folder: Path) -> None:
    script = "mkdir store; mount -t tmpfs -o size=64k tmpfs store; head -c 64k /dev/zero > store/full || :"
    examined = examine(*places(folder), under=mounted_first(script, folder))
    assert examined.status == 1
    assert examined.line("room").level == "warn"
    assert "No space left" in examined.line("probe").seen
    assert examined.report.backend == ""


def test_folders_that_are_none(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "nowhere").symlink_to("gone")
    for root, nearest in (
        ("file", "file"),
        ("file/store", "file"),
        ("nowhere", "nowhere"),
        ("nowhere/store", "nowhere"),
    ):
        place = looking.place(folder / root)
        assert (place.nearest, place.is_folder) == (folder / nearest, False)
    trial = looking.trial(looking.place(folder / "file"), folder)
    assert trial.folder == Path(tempfile.gettempdir())
    assert tree(folder) == ["file", "nowhere"]


def test_a_store_that_is_held(folder: Path) -> None:
    """It is seen who holds it, and nothing is held to see that."""
    (folder / "store").mkdir()
    with (folder / "store/lock").open("w") as lock:
        assert looking.place(folder / "store").holder == 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert looking.place(folder / "store").holder == os.getpid()
    assert looking.place(folder / "store").holder == 0


def test_beside_a_running_daemon(folder: Path) -> None:
    if reason := needs.missing_for_lazy(folder):
        pytest.skip(reason)
    with Daemon(folder) as daemon:
        words = ("--root", daemon.root, "--run", daemon.run, "--containerd", folder / "none.toml")
        before = tree(daemon.root)
        examined = examine(*words)
        assert tree(daemon.root) == before
        assert daemon.is_answering()
        assert examined.line("in use").seen == f"a daemon runs on it (pid {daemon.pid})"
        assert examined.report.backend == "lazy"
        assert f"pid {daemon.pid})" not in "".join(line.seen for line in examined.lines("fanotify"))


def test_a_run_folder_behind_a_link(folder: Path) -> None:
    """As /var/run is: what the probe mounts is below the folder that the link leads to."""
    (folder / "true").mkdir()
    (folder / "link").symlink_to("true")
    words = ("--root", folder / "store", "--run", folder / "link/run", "--containerd", folder / "none.toml")
    examined = examine(*words)
    assert tree(folder) == ["link", "true"]
    assert examined.report.backend == "lazy" or needs.missing_for_lazy(folder)


def test_told_to_end_it_takes_its_mounts_along(folder: Path) -> None:
    command = [sys.executable, "-m", "modelvold", "doctor", *(str(word) for word in places(folder))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "daemon"), "PATH": PATH}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as running:
        end = time.monotonic() + 10
        while not list(folder.iterdir()) and time.monotonic() < end:  # what is below comes and goes meanwhile
            time.sleep(0.001)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 128 + signal.SIGTERM
    assert tree(folder) == []


def test_a_probe_that_cannot_be_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Path) -> None:
        raise Failing("the store", "mend it")

    monkeypatch.setattr(looking, "probe", fails)
    trial = looking.trial(looking.place(folder), folder)
    assert (trial.findings, trial.trouble) == (None, "the store; mend it")


def test_a_machine_as_it_should_be(folder: Path) -> None:
    """The lab's own containerd and registry, configured as the lab runs them, seen from the outside."""
    try:
        program = debian.containerd()
        debian.docker_registry()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    if reason_ := needs.missing_for_lazy(folder):
        pytest.skip(reason_)
    ours = Modelvold(folder / "run/modelvold.sock", "127.0.0.1:7878", folder / "store")
    node = Containerd(folder / "node", "none", ours)
    node.cri.close()
    (node.root / "config.toml").write_text(node._configuration())
    settings = folder / "settings.toml"
    settings.write_text(f'[registry]\nhosts_dir = "{node.certificates}"\n')
    with Registry(folder / "registry", users={"user": "secret"}) as registry:
        node.hosts(registry)
        model = registry.push.model({"model.safetensors": b"x" * 4096})
        (folder / "docker").mkdir()
        auths = {"auths": {registry.host: {"username": "user", "password": "secret"}}}
        (folder / "docker/config.json").write_text(json.dumps(auths))
        before = tree(folder)
        words = (*places(folder)[:4], "--containerd", node.root / "config.toml", "--config", settings, model.reference)
        examined = examine(*words, PATH=f"{program.parent}:{PATH}", DOCKER_CONFIG=str(folder / "docker"))
        assert tree(folder) == before
        asked = registry.served()
    wrong = {line.what for line in examined.report.lines if line.level != "ok"}
    assert wrong <= {"file system", "room", "fanotify"}  # the machine's own
    assert examined.status == 0
    assert examined.line("hosts.toml").seen == f"lead to the façade: {registry.host}"
    assert examined.line("registry").seen.endswith(f"accepts the credentials of {folder}/docker/config.json")
    assert examined.line("through containerd").level == "ok"
    assert [(each.status, each.bytes) for each in asked if each.method == "GET" and each.digest][-1] == (206, 1)
