"""Where an ordinary user has a daemon: the user, a registry with a model, and a folder of the user's own for every test."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import debian
from tests.lab.account import Account, account, fuse_for, missing
from tests.lab.backends import FUSE, Backend
from tests.lab.check import settled
from tests.lab.content import Content, Generated, blocks_of
from tests.lab.daemon import Daemon
from tests.lab.mounts import mounted, unmount_below
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.reader import Reader
from tests.lab.registry import Registry

MIB = 1 << 20
FILES: dict[str, Content] = {
    "config.json": b"{}",
    "empty.txt": b"",
    **{f"weights/model-{n}.safetensors": Generated(48 * MIB + 513 * n, 30 + n) for n in range(3)},
}

#: Reads every file below a folder, by read and mapped, then tries to write it; what came of that, as JSON.
_LOOK = """
import hashlib, json, mmap, os, sys
from pathlib import Path
def tried(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.strerror
    return ""
found = {}
for above, _, names in os.walk(sys.argv[1]):
    added = tried(Path(above, "new"), os.O_WRONLY | os.O_CREAT)
    for name in names:
        path = Path(above, name)
        with path.open("rb") as file:
            content = file.read()
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if content else b""
        sums = {hashlib.sha256(content).hexdigest(), hashlib.sha256(mapped).hexdigest()}
        found[str(path.relative_to(sys.argv[1]))] = [*sums, tried(path, os.O_WRONLY), added]
print(json.dumps(found))
"""
DENIED, READ_ONLY = "Permission denied", "Read-only file system"


@dataclass(frozen=True, slots=True)
class Stage:
    """`folder` is the user's, new for every test."""

    user: Account
    registry: Registry
    pushed: Pushed
    folder: Path
    backend: Backend

    def daemon(self, folder: Path | None = None, **settings: dict[str, object]) -> Daemon:
        """By the stage's backend, unless `mount` is set."""
        chosen = {"mount": self.backend.setting, **settings}
        return Daemon(folder or self.folder, chosen, for_user=True, python=self.user.python)

    def here(self, name: str = "model") -> Path:
        return self.user.own(self.folder / name)

    def path(self) -> str:
        """A PATH on which `auto` takes the stage's backend: without `fusermount3` where that is not FUSE."""
        path = self.user.environment["PATH"]
        if self.backend is FUSE:
            return path
        linked = self.folder / "programs"
        linked.mkdir()
        for program in (program for folder in path.split(":") for program in Path(folder or "/nowhere").glob("*")):
            if not program.name.startswith("fusermount"):
                with suppress(FileExistsError):
                    (linked / program.name).symlink_to(program)
        return str(linked)

    def look(self, here: Path) -> None:
        """Every byte is right, and none can be written."""
        refused = READ_ONLY if self.backend is FUSE else DENIED
        ran = self.user.run(self.user.venv / "bin/python", "-c", _LOOK, here)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout) == {path: [_sha256(path), refused, refused] for path in FILES}

    def reader(self, here: Path) -> Reader:
        """The user's, with every file of weights open and mapped."""
        paths = [here / name for name in FILES if name.startswith("weights/")]
        return Reader(paths, [*self.user.python.words, str(self.user.clone / "tests/lab/reader.py")])


@contextmanager
def user_with_registry() -> Iterator[tuple[Account, Registry, Pushed]]:
    """Skips where there can be none."""
    if reason := missing():
        pytest.skip(reason)
    try:
        with account() as user, Registry(user.folder / "registry") as running:
            yield user, running, running.push.model(FILES)
    except debian.Unavailable as reason:
        pytest.skip(str(reason))


@contextmanager
def stage_of(user: Account, registry: Registry, pushed: Pushed, backend: Backend) -> Iterator[Stage]:
    """Whatever runs as the user, or is mounted, or lies in the user's temporary folder at the end fails the test."""
    folder = user.own(user.folder / "t")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(unmount_below, folder)
        if backend is FUSE:
            try:
                stack.enter_context(fuse_for(user))
            except debian.Unavailable as reason:
                pytest.skip(str(reason))
        with settled(user.folder):
            yield Stage(user, registry, pushed, folder, backend)
        check_gone(user)


def check_gone(user: Account) -> None:
    assert wait_until(lambda: not user.running(), 5), user.running()
    assert mounted(user.folder) == []
    assert list(user.temporary.iterdir()) == []


def ok(daemon: Daemon, *words: str | Path) -> str:
    ran = daemon.cli(*words)
    assert ran.returncode == 0, f"{words[0]}: {ran.stderr}\n{daemon.log_text()[-3000:]}"
    return ran.stdout


def status(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok(daemon, "status", "--json"))
    return found


def held(root: Path) -> list[Path]:
    """What a store without models does not hold."""
    return [path for part in ("content", "volumes") for path in (root / part).rglob("*") if not path.is_dir()]


def modelvold(user: Account, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`modelvold WORDS…`, as the user."""
    return user.run(user.venv / "bin/python", "-m", "modelvold", *words, environment=environment)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    for block in blocks_of(FILES[path]):
        digest.update(block)
    return digest.hexdigest()
