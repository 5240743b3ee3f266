"""A private containerd: root, state, sockets, shims and cgroups of its own; no other containerd is touched.

    <root>/config.toml, containerd.log
    <root>/certs.d/<host>/hosts.toml   what leads a registry's pulls to the façade
    <root>/lib, <root>/run             its root and state; the socket is <root>/run/c.sock
    /<cgroup parent>                   in every hierarchy, one folder for all its pods

`close()` leaves none of it: pods first (through CRI while it answers), then shims and whatever lives on in the cgroup,
then mounts below `root`, then the cgroup. Outside `root` shims make sockets in /run/containerd/s; that folder goes too
when no other containerd lives in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import psutil

from tests.lab import debian
from tests.lab.cri import Cri
from tests.lab.mounts import Mounted, unmount_below
from tests.lab.program import Program, wait_until
from tests.lab.registry import Registry
from tests.lab.services import Collector

log = logging.getLogger(__name__)
_SHIM_SOCKETS = Path("/run/containerd/s")
_CGROUPS = Path("/sys/fs/cgroup")
_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Modelvold:
    """Where the daemon answers: its socket, its façade (`host:port`), its store."""

    socket: Path
    facade: str
    store: Path


class Containerd:
    """`with Containerd(root, sandbox_image, modelvold) as containerd:`; `containerd.cri` talks to it.

    `sandbox_image` is the reference of an image that sleeps, in a registry it can reach. Without `modelvold` it is an
    ordinary containerd with overlayfs; with it both are there, and `snapshotter` is the one that CRI uses: modelvold if
    nothing else is said. `modelvold` and `snapshotter` may be set anew; that takes effect at the next start.
    `stats_period`: seconds between two looks of CRI at what snapshots take.
    """

    def __init__(
        self,
        root: Path,
        sandbox_image: str,
        modelvold: Modelvold | None = None,
        *,
        snapshotter: str = "",
        stats_period: int = 10,
    ) -> None:
        self.root = root
        self.socket = root / "run/c.sock"
        self.certificates = root / "certs.d"
        self.cgroup_parent = f"/modelvold-lab-{os.getpid()}-{root.name}"
        self.modelvold = modelvold
        self.snapshotter = snapshotter
        self._stats_period = stats_period
        self.leftovers: list[str] = []
        self._sandbox_image = sandbox_image
        program = debian.containerd()
        self._runc = debian.runc()
        self._program = Program(
            f"containerd-{root.name}",
            [program, "--config", root / "config.toml"],
            root / "containerd.log",
            lambda: self.socket.exists() and self.cri.is_ready(),
            {"PATH": f"{program.parent}:{self._runc.parent}:{os.environ.get('PATH', '')}"},
        )
        root.mkdir(parents=True, exist_ok=True)
        self.cri = Cri(self.socket, self.cgroup_parent, root / "pods")

    @property
    def pid(self) -> int:
        return self._program.pid

    def hosts(self, registry: Registry, *, facade: bool = True) -> None:
        """Writes a registry's `hosts.toml`: the façade first, where there is one and it is wanted."""
        first = self.modelvold.facade if self.modelvold and facade else ""
        registry.write_hosts(self.certificates, first)

    def start(self) -> None:
        self.certificates.mkdir(parents=True, exist_ok=True)
        (self.root / "pods").mkdir(exist_ok=True)
        (self.root / "config.toml").write_text(self._configuration())
        self._program.start()

    def stop(self) -> None:
        """Ends the daemon alone: pods go on, as with any containerd."""
        self._program.stop()

    def kill(self) -> None:
        """SIGKILL; pods go on."""
        self._program.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def ctr(self, *words: str | Path, namespace: str = "default") -> str:
        """`ctr WORDS…`, which must succeed; what it wrote. CRI's own namespace is `k8s.io`."""
        ran = self.try_ctr(*words, namespace=namespace)
        assert ran.returncode == 0, f"ctr {' '.join(map(str, words))}: {ran.stderr[-2000:]}"
        return ran.stdout

    def try_ctr(self, *words: str | Path, namespace: str = "default") -> subprocess.CompletedProcess[str]:
        """As `ctr`; look at `returncode`."""
        program = debian.containerd().parent / "ctr"
        return subprocess.run(
            [str(word) for word in (program, "--address", self.socket, "--namespace", namespace, *words)],
            # It mounts what it looks into below one of these.
            env={**os.environ, "XDG_RUNTIME_DIR": str(self.root / "run"), "TMPDIR": str(self.root / "run")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )

    def ctr_run(self, image: str, name: str, *command: str, flags: Sequence[str] = ()) -> str:
        """`ctr run FLAGS… IMAGE NAME COMMAND…`, which must succeed; what the command wrote. The container stays, unless a flag says
        otherwise, and like a pod's it is within `root` and the cgroup."""
        places = (
            "--runc-binary",
            self._runc,
            "--runc-root",
            self.root / "run/runc",
            "--fifo-dir",
            self.root / "run/fifo",
        )
        cgroup = ("--cgroup", f"{self.cgroup_parent}/{name}")
        return self.ctr("run", *places, *cgroup, *flags, image, name, *command)

    def collect(self) -> None:
        """Has its garbage collected, and returns when that is done; the snapshotter's Cleanup follows."""
        with Collector(self.socket) as collector:
            collector.run()

    def log_text(self) -> str:
        return self._program.log.read_text(errors="replace")

    def close(self) -> None:
        """Ends everything of it; what had to be taken away by force is in `leftovers`."""
        if self._program.is_running:
            self._remove_pods()
        self.cri.close()
        self._end_shims()
        self._program.stop()
        self.leftovers += [f"mount {mount.point} ({mount.type})" for mount in self._unmount()]
        self._remove_cgroups()
        _remove_shim_folder()

    def _remove_pods(self) -> None:
        try:
            for pod in self.cri.list_pods():
                self.cri.remove_pod(pod)
        except grpc.RpcError as error:
            self.leftovers.append(f"pods: {error}")

    def _end_shims(self) -> None:
        """Kills this containerd's shims (their command line names its socket) and all that is in its cgroup."""
        # A shim whose container was just removed is on its way out.
        wait_until(lambda: not self._cgroup_pids() | self._shims(), 2 if self._program.is_running else 0)
        for pid in self._cgroup_pids() | self._shims():
            self.leftovers.append(f"pid {pid}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._cgroup_pids() | self._shims(), 10)
        for bundle in self.root.glob("run/io.containerd.runtime.v2.task/*/*"):
            # A killed shim leaves its two sockets; containerd names them so (pkg/shim, SocketAddress).
            named = self.socket / bundle.parent.name / bundle.name
            for name in (named, named / "debug"):
                (_SHIM_SOCKETS / hashlib.sha256(os.fsencode(name)).hexdigest()).unlink(missing_ok=True)

    def _shims(self) -> set[int]:
        found = set()
        for running in psutil.process_iter(["pid", "name", "cmdline"]):
            words = running.info["cmdline"] or []
            if running.info["name"].startswith("containerd-shim") and str(self.socket) in words:
                found.add(int(running.info["pid"]))
        return found

    def _cgroup_folders(self) -> list[Path]:
        parents = [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir())]
        return [found for parent in parents if (found := parent / self.cgroup_parent.lstrip("/")).is_dir()]

    def _cgroup_pids(self) -> set[int]:
        pids: set[int] = set()
        for folder in self._cgroup_folders():
            for listing in folder.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    pids.update(int(line) for line in listing.read_text().split())
        return pids

    def _remove_cgroups(self) -> None:
        for parent in self._cgroup_folders():
            folders = [parent, *(path for path in parent.rglob("*") if path.is_dir())]
            for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _unmount(self) -> list[Mounted]:
        return unmount_below(self.root)

    def _configuration(self) -> str:
        """Version 3. Every path that would lie in /etc, /opt, /run or /var/lib is below `root`."""
        proxied = "modelvold" if self.modelvold else "overlayfs"
        root = self.root
        sections: dict[str, Mapping[str, object]] = {
            "grpc": {"address": str(self.socket)},
            "ttrpc": {"address": f"{self.socket}.ttrpc"},
            "debug": {"address": f"{self.socket}.debug", "level": "debug"},
            "plugins.'io.containerd.internal.v1.opt'": {"path": str(root / "opt")},
            "plugins.'io.containerd.nri.v1.nri'": {"disable": True},
            "plugins.'io.containerd.image-verifier.v1.bindir'": {"bin_dir": str(root / "none")},
            "plugins.'io.containerd.cri.v1.images'": {
                "snapshotter": self.snapshotter or proxied,
                "stats_collect_period": self._stats_period,
            },
            "plugins.'io.containerd.cri.v1.images'.registry": {"config_path": str(self.certificates)},
            "plugins.'io.containerd.cri.v1.images'.pinned_images": {"sandbox": self._sandbox_image},
            "plugins.'io.containerd.cri.v1.runtime'": {
                "restrict_oom_score_adj": True,
                "disable_apparmor": True,
                "disable_hugetlb_controller": True,
                "enable_unprivileged_ports": False,
                "enable_unprivileged_icmp": False,
                "enable_cdi": False,
            },
            "plugins.'io.containerd.cri.v1.runtime'.cni": {
                "conf_dir": str(root / "none"),
                "bin_dir": str(root / "none"),
            },
            "plugins.'io.containerd.cri.v1.runtime'.containerd": {"default_runtime_name": "runc"},
            "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc": {
                "runtime_type": "io.containerd.runc.v2"
            },
            "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options": {
                "BinaryName": str(self._runc),
                "Root": str(root / "run/runc"),
                "SystemdCgroup": False,
            },
        }
        if self.modelvold:
            sections["proxy_plugins.modelvold"] = {
                "type": "snapshot",
                "address": str(self.modelvold.socket),
                "capabilities": ["remap-ids"],
            }
            sections["proxy_plugins.modelvold.exports"] = {
                "root": str(self.modelvold.store),
                "enable_remote_snapshot_annotations": "true",
            }
        top = {"version": 3, "root": str(root / "lib"), "state": str(root / "run"), "disabled_plugins": _UNUSED}
        text = _toml(top) + "".join(f"\n[{name}]\n{_toml(values)}" for name, values in sections.items())
        for name in dict.fromkeys(["overlayfs", proxied]):
            unpack = {"platform": "linux", "snapshotter": name, "differ": "walking"}
            text += f"\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n{_toml(unpack)}"
        return text

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove_shim_folder() -> None:
    """Shims make /run/containerd/s whatever their containerd's state folder is; one that lives there has more in it."""
    folder = _SHIM_SOCKETS.parent
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {_SHIM_SOCKETS.name}:
            if _SHIM_SOCKETS.exists():
                _SHIM_SOCKETS.rmdir()
            folder.rmdir()


#: Snapshotters and services that would look at the machine's disks or are not used here.
_UNUSED = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
]


def _toml(values: Mapping[str, object]) -> str:
    """TOML's strings, booleans, integers and arrays of strings are written as JSON's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
