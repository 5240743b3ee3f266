"""Test programs in Go, against containerd's own packages: its suites are Go packages, and Debian has their sources.

Debian's Go and the sources (with everything they are made of) are unpacked, never installed: Go needs nothing but to know where it
lies. GOPATH mode, the one in which Debian's sources are used, asks nobody for anything. What comes out is static, and runs on
this machine as it is.

    .lab/<suite>/golang-github-containerd-containerd-dev/   both, and all that they need
    .lab/go/objects/                                        what Go has compiled before
    .lab/go/<hash of everything>/<name>.test                a test program
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab import debian

SOURCES = "golang-github-containerd-containerd-dev"
_HOME = "usr/lib/go"
#: The first build compiles grpc and all that containerd's mounts and snapshots need.
_TIMEOUT = 1800


class NotBuilt(Exception):
    """The message is what the compiler says."""


def test_program(package: Path) -> Path:
    """The tests of the Go package in the folder `package`, built once for what is in it and for Debian's versions of the rest.

    Raises NotBuilt, and debian.Unavailable.
    """
    root = debian.go(SOURCES)
    program = debian.folder() / "go" / _fingerprint(root, package) / f"{package.parent.name}.test"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as unfinished:
            built = Path(unfinished) / program.name
            _go(root, package, "test", "-c", "-trimpath", "-o", str(built))
            built.rename(program)
    return program


def version() -> str:
    """Of Go itself: `go1.24.4`, say."""
    return _version(debian.go(SOURCES))


def _version(root: Path) -> str:
    return (root / _HOME / "VERSION").read_text().split()[0]


def _fingerprint(root: Path, package: Path) -> str:
    known = hashlib.sha256(f"{_version(root)} {debian.edition(SOURCES)}\n".encode())
    for path in sorted(package.glob("*.go")):
        text = path.read_bytes()
        known.update(f"{path.name} {len(text)}\n".encode() + text)
    return known.hexdigest()[:16]


def _go(root: Path, package: Path, *words: str) -> None:
    home = root / _HOME
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(debian.folder() / "go"),
        "GOROOT": str(home.resolve()),
        "GOPATH": str(root / "usr/share/gocode"),
        "GOCACHE": str(debian.folder() / "go/objects"),
        "GOENV": "off",
        "GOFLAGS": "",
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    try:
        ran = subprocess.run(
            [str(home / "bin/go"), *words],
            cwd=package,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"go {words[0]}: {error}") from error
    if ran.returncode:
        raise NotBuilt(f"go {words[0]} in {package}:\n{ran.stderr.strip()}")
