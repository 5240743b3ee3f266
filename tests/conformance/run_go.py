"""containerd's own snapshotter suite, in Go, against this daemon on ext4 and on XFS. `python -m tests.conformance.run_go`, as root.

Each file system is a loop device in one temporary folder; nothing is left of it. Prints every case as it ends, what was said about
those that failed, and a table. Everything said stays in `.lab/go/<file system>.log`.

Exit status: 0 every case passed, 1 one did not, 3 this machine cannot run them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tests.lab import debian, disks, golang
from tests.lab.check import settled
from tests.lab.daemon import Python
from tests.lab.disks import Disk
from tests.lab.mounts import unmount_below
from tests.lab.program import wait_until

_PACKAGE = Path(__file__).with_name("go")
#: Of the suite as it is in every containerd from 2.1 on. A case that is not heard of has failed.
CASES = (
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "Rename",
    "128LayersMount",
)
NOTES = {
    "CloseTwice": "shows nothing: to close containerd's proxy is no call",
    "Rename": "but for a lower layer's directory, as for overlayfs",
}
#: For all cases of one file system.
_TIMEOUT = 1200
#: Of what a failed case said, for the terminal.
_MOST_LINES = 120

#: What is said in no case, and how the suite as a whole ended.
_SUITE = ""

# `-test.v=test2json` reports each case as it ends, and not all at the end; it marks what Go says, and errors, with these.
_MARKS = re.compile(r"[\x0e\x0f\x16\n]")

_ABOUT = re.compile(r"=== (?:RUN|CONT|NAME|PAUSE) +(?P<test>\S*)")
_ENDED = re.compile(r" *--- (?P<how>PASS|FAIL|SKIP): (?P<test>\S+) \((?P<seconds>[\d.]+)s\)")
# Of its whole folder, after a failure.
_LISTED = re.compile(r" +helpers\.go:\d+: [-\w]{10,} .*")


@dataclass
class Case:
    """`how` is what Go called its end, "" while it has none. `said` are its lines and its daemon's, in order."""

    how: str = ""
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        return self.how == "PASS"

    def __str__(self) -> str:
        return f"{self.how.lower()} {self.seconds:.1f} s" if self.how else "not heard of"


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    if os.geteuid() != 0:
        print("not root: snapshots are mounted")
        return 3
    if missing := disks.missing():
        print(missing)
        return 3
    try:
        program = golang.test_program(_PACKAGE)
    except debian.Unavailable as reason:
        print(f"the suite cannot be had here: {reason}")
        return 3
    except golang.NotBuilt as reason:
        print(reason)
        return 1
    print(f"containerd's suite of {golang.SOURCES} {debian.edition(golang.SOURCES)}, built by {golang.version()}")
    found: dict[str, dict[str, Case]] = {}
    try:
        _run(program, found)
    except AssertionError as reason:
        print(reason)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was stopped and removed")
        return 130
    finally:
        _print_table(found)
    return 0 if all(case.has_passed for cases in found.values() for case in cases.values()) else 1


def _run(program: Path, found: dict[str, dict[str, Case]]) -> None:
    """Fills `found` by file system and case. Raises AssertionError if something is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="modelvold-")).resolve()
    try:
        with settled(folder), Disk(folder, 2 << 30) as disk:
            for name, path in (("ext4", disk.path), ("xfs", disk.image.parent)):
                found[name] = {case: Case() for case in (*CASES, _SUITE)}
                _run_on(name, path, program, found[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_on(file_system: str, folder: Path, program: Path, cases: dict[str, Case]) -> None:
    here = folder / "tmp"
    here.mkdir()
    log = debian.folder() / f"go/{file_system}.log"
    with log.open("w") as copy, _output(program, here) as lines:
        for name in _ended(_plain(lines, copy), cases):
            _print_case(file_system, name, cases[name])
    for name in (name for name, case in cases.items() if not case.how):
        _print_case(file_system, name, cases[name])
    if not all(case.has_passed for case in cases.values()):
        print(f"everything said is in {log}")


@contextmanager
def _output(program: Path, folder: Path) -> Iterator[Iterable[str]]:
    """The lines of the program, one case after another, with `folder` for everything it makes. It and its daemons end with the
    block, and what they left mounted goes."""
    words = [str(program), "-test.v=test2json", "-test.parallel=1", f"-test.timeout={_TIMEOUT}s"]
    python = Python()
    environment = {
        **os.environ,
        **python.environment,
        "MODELVOLD_PYTHON": python.words[0],
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
    }
    running = subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    # A daemon left behind would keep the output open for ever.
    ending = threading.Thread(target=_end_session, args=(running.pid,), name="suite's end")
    ending.start()
    try:
        assert running.stdout
        with running.stdout as lines:
            yield lines
    finally:
        os.kill(running.pid, signal.SIGKILL)  # not `running.kill()`, which would reap it
        ending.join()
        running.wait()
        wait_until(lambda: not _has_members(running.pid))
        unmount_below(folder)


def _end_session(leader: int) -> None:
    """Waits for it, and ends who is left of its group. Its number stays its own, for it is not reaped."""
    os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
    os.killpg(leader, signal.SIGKILL)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _plain(lines: Iterable[str], copy: TextIO) -> Iterator[str]:
    for line in lines:
        plain = _MARKS.sub("", line)
        copy.write(f"{plain}\n")
        yield plain


def _ended(lines: Iterable[str], cases: dict[str, Case]) -> Iterator[str]:
    """The name of each case as it ends; `cases` has then all of it."""
    name = _SUITE
    for line in lines:
        if about := _ABOUT.fullmatch(line):
            name = about["test"].partition("/")[2]
        elif end := _ENDED.fullmatch(line):
            ended = end["test"].partition("/")[2]
            case = cases.setdefault(ended, Case())
            case.how, case.seconds = end["how"], float(end["seconds"])
            yield ended
        else:
            cases.setdefault(name, Case()).said.append(line)


def _print_case(file_system: str, name: str, case: Case) -> None:
    print(f"{file_system:5} {name or 'the suite':30} {case}", flush=True)
    if not case.has_passed:
        said = [f"      {line}" for line in case.said if not _LISTED.fullmatch(line)]
        for line in said[-_MOST_LINES:]:
            print(line)


def _print_table(found: dict[str, dict[str, Case]]) -> None:
    print("\n" + f"{'case':30}" + "".join(f"{file_system:14}" for file_system in found))
    for name in dict.fromkeys(name for cases in found.values() for name in cases if name != _SUITE):
        row = "".join(f"{cases.get(name, Case())!s:14}" for cases in found.values())
        print(f"{name:30}{row}{NOTES.get(name, '')}".rstrip())


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends it as Ctrl-C does: everything is taken down."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
