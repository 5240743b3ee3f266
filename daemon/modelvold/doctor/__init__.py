"""The doctor: looks at a machine, and says what works, what does not, and what mends it. Works without a daemon.

Rules: nothing is changed, and nothing left behind. Looking (`looking`, `asking`) is apart from judging (all others, pure):
values in, lines out. What is broken, hostile or silent becomes a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelvold import config
from modelvold.config import Config
from modelvold.doctor import (
    containerd,
    containerd_says,
    hosts_files,
    kernel,
    looking,
    model,
    privileges,
    store,
    table,
    watchers,
)
from modelvold.doctor.asking import ask, route_of
from modelvold.doctor.configuration import read
from modelvold.doctor.line import Group, Level, Line, Report
from modelvold.doctor.looking import Trial
from modelvold.doctor.model import Here
from modelvold.doctor.store import Place
from modelvold.doctor.table import Ours
from modelvold.errors import Failure
from modelvold.linux.machine import architecture
from modelvold.mount.findings import LAZY
from modelvold.oci.reference import Reference
from modelvold.rpc import places

__all__ = ["Level", "Line", "Report", "examine"]
_SETTINGS = Group("settings")


def examine(
    reference: str | None, file: Path | None, root: Path | None, run: Path | None, containerd_file: Path
) -> Report:
    """Everything, in the order in which one thing rests on another; `reference` too, where one is given."""
    settings, line = _settings(file, root, run)
    place = looking.place(settings.store.root)
    trial = looking.trial(place, settings.run)
    backend = kernel.backend(trial.findings, settings.mount.backend) if trial.findings else ""
    lines = [
        line,
        *_kernel(trial, place, settings.mount.backend),
        *privileges.check(os.geteuid(), *(looking.text_of(Path("/proc/self", name)) for name in ("status", "uid_map"))),
        *store.check(place),
        *_watchers(place, settings, backend),
    ]
    is_there = _containerd(containerd_file, settings, lines)
    if reference is not None:
        lines += _model(reference, settings, place, backend, is_there=is_there)
    return Report(tuple(lines), backend)


def _settings(file: Path | None, root: Path | None, run: Path | None) -> tuple[Config, Line]:
    """As the daemon would have them; the defaults, and a line that says so, where it would not start with them."""
    for_user = os.geteuid() != 0
    usual = places.user_places(os.environ)[0] if for_user else places.DEFAULT_FILE
    try:
        settings = config.load(file, root=root, run=run, for_user=for_user)
    except RecursionError:
        return _without(Failure(f"{file or usual}: nested too deeply", "mend the file"), root, run)
    except Failure as failure:
        return _without(failure, root, run)
    if file is None and not os.path.lexists(usual):
        return settings, _SETTINGS.ok("file", f"no {usual}, so everything has its default")
    return settings, _SETTINGS.ok("file", str(file or usual))


def _without(failure: Failure, root: Path | None, run: Path | None) -> tuple[Config, Line]:
    line = _SETTINGS.bad("file", f"{failure.message}; all below is as without it", failure.remedy)
    return config.load(Path(os.devnull), root=root, run=run, for_user=os.geteuid() != 0), line


def _kernel(trial: Trial, place: Place, wanted: str) -> Iterator[Line]:
    if trial.findings is None:
        yield kernel.GROUP.bad("probe", f"could not be made in {trial.folder}: {trial.trouble}", _TRY_ELSEWHERE)
        return
    uname = os.uname()
    yield from kernel.check(uname.release, uname.machine, trial.findings, wanted)
    if trial.folder != place.nearest:
        seen = f"all of this in {trial.folder}, since the store cannot be written"
        yield kernel.GROUP.warn("tried", seen, "see below, store")


_TRY_ELSEWHERE = "see below, store; or name another folder with --root"


def _watchers(place: Place, settings: Config, backend: str) -> Iterable[Line]:
    if backend != LAZY:
        return [watchers.not_needed()]
    found, is_all = looking.watchers()
    return watchers.check(found, place.holder, settings.run, is_all=is_all)


def _containerd(file: Path, settings: Config, lines: list[Line]) -> bool:
    """Whether there is one that could use us."""
    if settings.for_user:
        lines.append(table.GROUP.ok("containerd", "not looked at: a daemon of one user serves none"))
        return False
    ours = Ours(settings.address, settings.store.root, settings.registry.hosts_dir, file)
    seen = containerd_says.seen(file)
    reading = read(seen, ours)
    lines += reading.lines
    if reading.table is not None:
        lines += containerd.check(reading.table, ours, reading.version)
    is_there = seen.program is not None or seen.document is not None
    if is_there:
        folder = containerd.config_path(reading.table or {}) or ours.hosts_dir
        facade = str(settings.facade.listen or "")
        lines += hosts_files.check(folder, containerd_says.hosts_files(folder), facade, reading.version)
    return is_there


def _model(text: str, settings: Config, place: Place, backend: str, *, is_there: bool) -> Iterator[Line]:
    hosts_dir, facade = settings.registry.hosts_dir, str(settings.facade.listen or "")
    try:
        reference = Reference.parse(text)
        route = route_of(reference, hosts_dir, facade)
    except Failure as failure:
        yield model.unreadable(text, failure)
        return
    answer = ask(reference, hosts_dir, settings.docker_config, facade, architecture(), proxies=settings.proxies)
    yield from model.check(answer, Here(backend, place.free, route if is_there else None))
