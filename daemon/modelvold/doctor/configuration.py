"""From what containerd says of itself, and its file, to a parsed configuration. Pure: what was said comes in, lines go out.

containerd's own `config dump` is believed first: it merges imports, brings older versions up to date and fills defaults in, and
names keys that it ignores. Where there is no program to ask, or it does not answer, the file itself has to do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelvold.doctor.containerd import whole
from modelvold.doctor.line import Line, copied
from modelvold.doctor.table import GROUP, OLDEST, Ours, Table, Version

_VERSION = re.compile(r"containerd\s+\S+\s+v?(\d+)\.(\d+)\S*")
#: logrus's text form.
_IGNORED = re.compile(r'msg="Ignoring unknown key in TOML.*?\bkey=("[^"]*"|\S+)(?: plugin=(\S+))?(?: row=(\d+))?')
_MESSAGE = re.compile(r"^containerd: (.*)$", re.MULTILINE)
#: Of the file, in the versions of containerd that we work with.
_FORMAT = 3


@dataclass(frozen=True, slots=True)
class Said:
    """A program's answer; `status` is None where it did not end in time, or could not be run."""

    status: int | None
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Seen:
    """`program`: None where none was found; then nothing was said. `document`: the file's bytes, None where there is no file or
    `trouble` says why it cannot be read."""

    program: Path | None
    version: Said | None
    dump: Said | None
    document: bytes | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Reading:
    """`lines` of how it went; `table` is None where there is nothing to check, `version` where it is not known."""

    lines: tuple[Line, ...]
    table: Table | None = None
    version: Version | None = None


def read(seen: Seen, ours: Ours) -> Reading:
    file = ours.file
    if seen.program is None and seen.document is None and not seen.trouble:
        absent = f"not installed: no program of that name, no {file}"
        mend = "`modelvold mount` and `modelvold pull` work without it; pods need containerd 2.1 or later"
        return Reading((GROUP.warn("containerd", absent, mend),))
    program, version = _program(seen)
    if version and version < OLDEST:
        return Reading((program,))
    if seen.trouble:
        mend = "run as root, or name another with --containerd"
        return Reading((program, GROUP.bad("configuration", f"{file}: {seen.trouble}", mend)), None, version)
    if seen.document is None:
        absent = f"{file} is not there: containerd does not know of modelvold"
        return Reading((program, GROUP.bad("configuration", absent, whole(ours))), None, version)
    table, lines = _configuration(seen.document, seen.dump, file)
    return Reading((program, *lines), table, version)


def _program(seen: Seen) -> tuple[Line, Version | None]:
    program, said = seen.program, seen.version
    if program is None or said is None:
        unknown = "no program of that name found, so its version is not known, and its file is read as it is"
        mend = "run `modelvold doctor` where containerd is, or with its folder in PATH"
        return GROUP.warn("containerd", unknown, mend), None
    found = _VERSION.search(said.output)
    if found is None:
        cause = "did not say its version in time" if said.status is None else "does not say its version"
        return GROUP.warn("containerd", f"{program} {cause}", f"see what it says:\n    {program} --version"), None
    version = int(found[1]), int(found[2])
    text = f"{program}, version {found[0].split()[-1].removeprefix('v')}"
    if version < OLDEST:
        return GROUP.bad("containerd", f"{text}: too old for image volumes", "install containerd 2.1 or later"), version
    return GROUP.ok("containerd", text), version


def _configuration(document: bytes, dump: Said | None, file: Path) -> tuple[Table | None, list[Line]]:
    table = _parsed(document)
    if dump is not None and dump.status == 0:
        dumped = _parsed(dump.output.encode(errors="replace"))
        if isinstance(dumped, dict):
            return dumped, [_as_containerd_reads_it(table, file), *_ignored(dump.errors, file)]
    elif dump is not None and dump.status is not None:
        words = _MESSAGE.findall(dump.errors) or dump.errors.strip().splitlines() or ["without a word"]
        return None, [
            GROUP.bad(
                "configuration",
                f"{file}: containerd refuses it: {words[-1]}",
                f"mend it, and look again:\n{_dump(file)}",
            )
        ]
    if not isinstance(table, dict):
        return None, [GROUP.bad("configuration", f"{file}: {table}", "mend the file")]
    version = table.get("version", 1)
    if version != _FORMAT:
        seen = f"{file} is of version {version}, which only containerd itself can bring up to date"
        return None, [GROUP.warn("configuration", seen, f"see what it makes of it:\n{_dump(file)}")]
    return table, [_as_it_stands(table, file, is_asked=dump is not None)]


def _as_containerd_reads_it(table: Table | str, file: Path) -> Line:
    version = table.get("version", 1) if isinstance(table, dict) else _FORMAT
    if version == _FORMAT:
        return GROUP.ok("configuration", f"{file}, as containerd reads it")
    return GROUP.warn(
        "configuration",
        f"{file}, as containerd reads it; of version {version}, while what is said below to mend it is of version {_FORMAT}",
        f"bring it up to date:\n    containerd --config {file} config migrate > {file}.new",
    )


def _as_it_stands(table: Table, file: Path, *, is_asked: bool) -> Line:
    imports = "; what it imports was not looked at" if table.get("imports") else ""
    if is_asked:
        seen = f"{file}, as it stands: containerd did not say how it reads it{imports}"
        return GROUP.warn("configuration", seen, f"see what it says:\n{_dump(file)}")
    if imports:
        return GROUP.warn(
            "configuration", f"{file}, as it stands{imports}", "run `modelvold doctor` where containerd is"
        )
    return GROUP.ok("configuration", f"{file}, as it stands")


def _dump(file: Path) -> str:
    return copied(f"containerd --config {file} config dump")


def _parsed(document: bytes) -> Table | str:
    """The table, or what is wrong with it."""
    try:
        return tomllib.loads(document.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return f"not TOML: {error}"
    except RecursionError:
        return "not TOML that can be read: nested too deeply"


def _ignored(errors: str, file: Path) -> Iterator[Line]:
    """A key misspelt is a key left out: containerd says so once, in a log."""
    for key, plugin, row in _IGNORED.findall(errors):
        name = ".".join(key.strip('"').split())
        place = f" of plugins.'{plugin}'" if plugin else f" in line {row}" if row else ""
        yield GROUP.warn(
            "configuration",
            f"containerd knows no key {name}{place}, and ignores it",
            f"check its spelling and place in {file}",
        )
