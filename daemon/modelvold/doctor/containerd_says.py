"""What containerd says of itself, its file, and its hosts.toml files. Changes nothing, and ends what it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from modelvold.doctor.configuration import Said, Seen
from modelvold.doctor.hosts_files import HostsFile

_USUAL_PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/containerd/bin:/opt/bin"
#: containerd takes 30 ms for either; a machine that swaps, seconds.
_PATIENCE = 10.0
_LARGEST_FILE = 1 << 20


def seen(file: Path) -> Seen:
    document, trouble = _document(file)
    found = shutil.which("containerd", path=":".join(filter(None, (os.environ.get("PATH"), _USUAL_PLACES))))
    if found is None:
        return Seen(None, None, None, document, trouble)
    dump = None if document is None else _said([found, "--config", str(file), "config", "dump"])
    return Seen(Path(found), _said([found, "--version"]), dump, document, trouble)


def hosts_files(hosts_dir: Path) -> list[HostsFile]:
    """One for each registry's folder that has a hosts.toml."""
    try:
        folders = sorted(hosts_dir.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        return [HostsFile(hosts_dir / "*" / "hosts.toml", trouble=error.strerror or str(error))]
    found = []
    for folder in folders:
        document, trouble = _document(folder / "hosts.toml")
        if document is not None or trouble:
            found.append(HostsFile(folder / "hosts.toml", document or b"", trouble))
    return found


def _document(file: Path) -> tuple[bytes | None, str]:
    """Its bytes; or None, and why, where there is a reason other than that it is not there."""
    try:
        with file.open("rb") as stream:
            document = stream.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as error:
        return None, error.strerror or str(error)
    return (document, "") if len(document) <= _LARGEST_FILE else (None, f"larger than {_LARGEST_FILE >> 20} MiB")


def _said(command: list[str]) -> Said:
    """A program's words, in a session of its own, so that whatever it started ends with it."""
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Said(None, "", error.strerror or str(error))
    with program:
        try:
            output, errors = program.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            return Said(None, "", "")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    return Said(program.returncode, output, errors)
