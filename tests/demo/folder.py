"""The walk without containerd: `modelvold mount` shows the model in a folder. It needs no root, and no kernel feature.

How the model comes there is the backend's, the best that works here: for an ordinary user `fuse`, where bytes come when they are read, if
`fusermount3` works, else `directory`, where all of them are fetched and checked first.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.demo.stage import FIRST, MOST_AT_FIRST, WEIGHTS, Stage, check, packed, sha256_of
from tests.lab import debian
from tests.lab.content import files_of
from tests.lab.daemon import Daemon
from tests.lab.registry import Registry

_WITHOUT_ROOT = """\
without root: no containerd, and the backend `{backend}`: {meaning}
as root: a pod reads the model through containerd while its bytes arrive, if this Linux {release} has fanotify pre-content \
events, which root alone can try
"""
_WITHOUT_POD = """\
no pod that reads it lazily on this machine: {missing}
instead: `modelvold mount` without containerd, by the best backend that works here
"""
_LAZILY = "the model is read while its bytes arrive, from a mount of `fusermount3`"
_WHOLE = "all bytes first, then a plain folder marked read-only"
#: Where a user has no FUSE: what was seen, and what brings it.
_LACKING = "while its bytes arrive, without root too: not here, {seen}; {mend}\n"
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS}
_LAZY = {"lazy", "fuse"}
#: Seconds. What is here already is shown by one bind mount or one link.
_INSTANT = 2.0


def play(console: Console, folder: Path, stack: ExitStack, missing: str) -> None:
    """Everything it starts lives in `folder` and ends with `stack`; `missing` is what the other walk lacks. Raises
    NotAsPromised."""
    is_root = os.geteuid() == 0
    console.print(f"registry {debian.docker_registry()}", soft_wrap=True)
    model = debian.real_model()
    registry = stack.enter_context(Registry(folder / "registry"))
    daemon = stack.enter_context(Daemon(folder / "daemon", {"fetch": {"prefetch": False}}, for_user=not is_root))
    told = _WITHOUT_POD.format(missing=missing) if is_root else _without_root(daemon)
    console.print(told, soft_wrap=True, markup=False, end="")
    stage = packed(console, registry, daemon, model)
    places = [folder / "model", folder / "model-again"]
    for place in places:
        place.mkdir()
    _act(stage, *places)
    _undo(stage, *places)


def _without_root(daemon: Daemon) -> str:
    backend = _backend(daemon)
    is_lazy = backend in _LAZY
    told = _WITHOUT_ROOT.format(backend=backend, meaning=_LAZILY if is_lazy else _WHOLE, release=os.uname().release)
    if is_lazy:
        return told
    lines = json.loads(daemon.cli("doctor", "--json").stdout)["lines"]
    return told + "".join(_LACKING.format(**line) for line in lines if line["what"] == "reads through FUSE")


def _backend(daemon: Daemon) -> str:
    backend: str = json.loads(daemon.cli("status", "--json").stdout)["node"]["backend"]
    return backend


def _act(stage: Stage, here: Path, again: Path) -> None:
    backend = _backend(stage.daemon)
    is_lazy = backend in _LAZY
    if is_lazy:
        stage.tell("prefetch is off, so that what is fetched is what was read\n")
    timeline = stage.timeline()
    with timeline.step("modelvold mount answered"):
        stage.show("mount", stage.reference, here)
    share = timeline.share(timeline.moments[-1])
    check(is_lazy or share >= 1, f"with the backend {backend} the mount was answered at {share:.1%} of the model")
    with timeline.step("first MiB of weights read"):
        first = sha256_of(here / WEIGHTS, FIRST)
    stage.check_first(first)
    if is_lazy:
        share = timeline.share(timeline.moments[-1])
        check(share < MOST_AT_FIRST, f"the registry had served {share:.1%} of the model for the first MiB")
    with timeline.step("every file read, all checksums right"):
        sums = {name: sha256_of(here / name) for name in files_of(here)}
    stage.check_all(sums)
    before = timeline.moments[-1].seconds
    with timeline.step("mounted a second time"):
        stage.show("mount", stage.reference, again)
    seconds = timeline.moments[-1].seconds - before
    with timeline.step("modelvold pull: present, durable, verified"):
        stage.cli("pull", stage.reference)
    check(seconds < _INSTANT, f"the second mount took {seconds:.1f} s")
    check((again / WEIGHTS).samefile(here / WEIGHTS), "the second mount shows another copy")
    _check_readonly(stage, here)
    stage.tell()
    timeline.show(stage.console)
    stage.tell("Each step's end; the second mount shows the same bytes.\n")
    stage.show("status")


def _check_readonly(stage: Stage, here: Path) -> None:
    if here.is_symlink() and os.geteuid() == 0:
        stage.tell("root could write to it: only a mount keeps root from that, and none is allowed here")
        return
    for name in files_of(here):
        check(_is_refused(here / name, os.O_WRONLY), f"{name} could be opened for writing")
    check(_is_refused(here / "new", os.O_WRONLY | os.O_CREAT), "a file could be made beside the model's")
    stage.tell(f"\nevery file of {here} refuses to be written, and no file can be added")


def _is_refused(path: Path, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in _REFUSALS
    return False


def _undo(stage: Stage, *places: Path) -> None:
    for place in places:
        stage.show("umount", place)
        is_empty = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
        check(is_empty, f"{place} is not the empty folder that it was")
    stage.show("rm", stage.reference)
    kept = [path for part in ("content", "volumes") for path in (stage.daemon.root / part).rglob("*")]
    check(not any(path.is_file() for path in kept), "files of the model are left in the store")
