"""An ordinary user made for a test, with a clone of the working tree and all that it takes to run it. Needs root.

Our own interpreter, packages and laboratory may lie where nobody else may look (below /root, in a clone of mode 0700). What
others may read anyway is used as it is or linked, the rest is copied; nothing is fetched again.

    <folder>/home/         the user's home, empty, and the user's
    <folder>/modelvold/    a clean clone of the working tree, the user's
    <folder>/tmp/          the user's TMPDIR
    <folder>/venv/         what is installed beside us, with the clone for its modelvold: for `make VENV=…`
    <folder>/python/       our interpreter, where the user may not run it in its place
    <folder>/lab/          what the laboratory has fetched already
    <folder>/bin/          first on the user's PATH, and empty but for `fuse_for`

At the end whoever runs as the user is ended, and the user is removed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.lab import debian
from tests.lab.daemon import Python

_TREE = Path(__file__).resolve().parents[2]
#: Of an interpreter's library, what nothing here imports; most of its size.
_UNUSED = (
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "config-*",
    "ensurepip",
    "lib2to3",
)
_DEVICE = Path("/dev/fuse")
_TOOLS = ("useradd", "userdel", "setpriv", "make")


@dataclass(frozen=True, slots=True)
class Account:
    """`environment` is the user's whole one; `python` runs our code as the user."""

    name: str
    uid: int
    gid: int
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def clone(self) -> Path:
        return self.folder / "modelvold"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Python:
        return Python((*_becoming(self.uid, self.gid), str(self.venv / "bin/python")), self.environment)

    def run(
        self, *words: str | Path, timeout: float = 120, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`WORDS…` as the user, in the clone; look at `returncode`."""
        return subprocess.run(
            [*_becoming(self.uid, self.gid), *(str(word) for word in words)],
            env={**self.environment, **(environment or {})},
            cwd=self.clone,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def own(self, folder: Path) -> Path:
        """`folder`, made if need be, and the user's."""
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, self.uid, self.gid)
        return folder

    def running(self) -> list[str]:
        """What runs as the user."""
        found = psutil.process_iter(["pid", "uids", "name"])
        return [f"pid {p.info['pid']} {p.info['name']}" for p in found if p.info["uids"] and self.uid in p.info["uids"]]


def missing() -> str:
    """What keeps a user from being made here, in one line; empty if nothing does."""
    if os.geteuid() != 0:
        return "not root: users are made by root"
    absent = [tool for tool in _TOOLS if shutil.which(tool, path=_path()) is None]
    return f"not on this machine: {', '.join(absent)}" if absent else ""


@contextmanager
def account() -> Iterator[Account]:
    """Raises debian.Unavailable where the laboratory cannot be furnished. Meanwhile what we make can be read by others."""
    debian.docker_registry(), debian.real_model()
    folder = _reachable_folder()
    umask = os.umask(0o022)
    try:
        with _user(folder / "home") as (name, uid, gid):
            made = Account(name, uid, gid, folder, _environment(folder))
            _furnish(made)
            try:
                yield made
            finally:
                _end_all(uid)
    finally:
        os.umask(umask)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fuse_for(account: Account) -> Iterator[None]:
    """Meanwhile the user has what FUSE takes: `fusermount3`, owned by root and with the setuid bit, as the package `fuse3` has it, in a
    folder that nobody else can list; and a /dev/fuse that everybody may open, as udev makes it. Raises debian.Unavailable where it
    cannot be had."""
    if not _DEVICE.exists():
        raise debian.Unavailable(f"no {_DEVICE} on this machine")
    program = account.folder / "bin/fusermount3"
    shutil.copyfile(debian.fusermount3(), program)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        raise debian.Unavailable(f"no setuid bit counts in {account.folder}: its file system is mounted with `nosuid`")
    mode = stat.S_IMODE(_DEVICE.stat().st_mode)
    program.chmod(0o4755)
    _DEVICE.chmod(0o666)
    try:
        yield
    finally:
        _DEVICE.chmod(mode)
        program.unlink()


@contextmanager
def _user(home: Path) -> Iterator[tuple[str, int, int]]:
    """A system account: no mail folder, no home of its own making, no subordinate ids."""
    name = f"modelvold-{os.getpid()}"
    words = ["useradd", "--system", "--no-create-home", "--no-user-group", "--home-dir", str(home), name]
    subprocess.run(words, check=True, capture_output=True, env={"PATH": _path()})
    try:
        entry = pwd.getpwnam(name)
        yield name, entry.pw_uid, entry.pw_gid
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True, env={"PATH": _path()})


def _furnish(account: Account) -> None:
    for folder in (account.home, account.temporary):
        account.own(folder)
    (account.folder / "bin").mkdir()
    _clone(account)
    _link(debian.folder(), account.folder / "lab", "apt", "forky", "lock")
    base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    # By way of a shell: setpriv itself has root's capabilities until it has become the program.
    if account.run("sh", "-c", 'exec "$0" -c "import ssl, sqlite3"', base).returncode != 0:
        base = _copied_interpreter(base, account.folder / "python")
    _make_venv(account, base)


def _clone(account: Account) -> None:
    """As `git clone` would, of what is not committed too: all but what .gitignore names."""

    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)
        os.chown(target, account.uid, account.gid)

    ignored = [line.rstrip("/") for line in (_TREE / ".gitignore").read_text().split()]
    shutil.copytree(_TREE, account.clone, ignore=shutil.ignore_patterns(".git", *ignored), copy_function=copy)
    for above, _, _ in os.walk(account.clone):
        os.chown(above, account.uid, account.gid)
        os.chmod(above, 0o755)  # noqa: PTH101


def _make_venv(account: Account, interpreter: Path) -> None:
    """As `python -m venv` and an editable install leave it (PEP 405), but for pip and scripts."""
    packages = Path(sysconfig.get_path("purelib"))
    ours = account.venv / "lib" / packages.parent.name / packages.name
    _link(packages, ours, "__editable__*", "pip")
    (ours / "modelvold.pth").write_text(f"{account.clone / 'daemon'}\n")
    (account.venv / "bin").mkdir()
    (account.venv / "bin/python").symlink_to(interpreter)
    (account.venv / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\n")
    (account.venv / "ready").touch()


def _copied_interpreter(base: Path, target: Path) -> Path:
    """`base` with its libraries, below `target`."""
    library = Path(sysconfig.get_path("stdlib"))
    _link(library, target / "lib" / library.name, *_UNUSED)
    for shared in library.parent.glob("libpython*.so*"):
        _link_file(str(shared), str(target / "lib" / shared.name))
    (target / "bin").mkdir()
    _link_file(str(base), str(target / "bin" / base.name))
    return target / "bin" / base.name


def _link(source: Path, target: Path, *ignored: str) -> None:
    """The tree `source` as `target`, for others to read."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*ignored), copy_function=_link_file)
    for above, _, _ in os.walk(target):
        os.chmod(above, 0o755)  # noqa: PTH101


def _link_file(source: str, target: str) -> None:
    """A hard link where others may read the file anyway and it lies on the same file system, else a copy that they may."""
    mode = os.stat(source).st_mode  # noqa: PTH116
    if mode & stat.S_IROTH:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if mode & stat.S_IXUSR else 0o644)  # noqa: PTH101


def _environment(folder: Path) -> dict[str, str]:
    """What a shell of the user would have, and where our things lie. Everything else of ours is taken out, also by who
    merges it with ours."""
    ours = {
        name: "" for name in os.environ if name.startswith(("XDG_", "MODELVOLD_", "PYTHON", "VIRTUAL_ENV", "DOCKER_"))
    }
    return {
        **ours,
        "PATH": f"{folder / 'bin'}:{_path()}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "MODELVOLD_LAB": str(folder / "lab"),
        "LD_LIBRARY_PATH": str(folder / "python/lib"),
    }


def _reachable_folder() -> Path:
    """A new folder that everybody may enter, and nobody may list."""
    places = [Path(tempfile.gettempdir()), Path("/var/tmp")]
    place = next(filter(_is_reachable, places), places[-1])
    made = Path(tempfile.mkdtemp(prefix="mv-", dir=place.resolve()))
    made.chmod(0o711)
    return made


def _is_reachable(place: Path) -> bool:
    resolved = place.resolve()
    return all(path.stat().st_mode & stat.S_IXOTH for path in (resolved, *resolved.parents))


def _end_all(uid: int) -> None:
    """Nobody but who was started here runs as this user."""
    running = [
        process for process in psutil.process_iter(["uids"]) if process.info["uids"] and uid in process.info["uids"]
    ]
    for process in running:
        process.kill()
    psutil.wait_procs(running, timeout=10)


def _becoming(uid: int, gid: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
