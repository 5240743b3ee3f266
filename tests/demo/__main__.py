"""A real container reads a real model through a real containerd, lazily. Run as root: `python -m tests.demo`.

Everything it starts lives in one temporary folder with sockets of its own and is gone afterwards, also when a step
fails or Ctrl-C is pressed. Exit status: 0 shown, 1 something was not as promised, 3 this machine cannot show it.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Console

from tests.demo.timeline import Timeline
from tests.lab import debian, needs
from tests.lab.check import settled
from tests.lab.containerd import Containerd
from tests.lab.content import files_of
from tests.lab.cri import Cri
from tests.lab.daemon import Daemon
from tests.lab.program import Failed
from tests.lab.registry import Registry

_WEIGHTS = "model.safetensors"
_FIRST = 1 << 20
#: The share of the model that may have crossed the wire when the container has read its first MiB.
_MOST_AT_FIRST = 0.10

_ELSEWHERE = """\
A later version will mount models here all the same: through FUSE where there is /dev/fuse (lazily, with a process in
the path of uncached reads), else as a mount or a plain folder that appears when all bytes have arrived."""


class NotAsPromised(Exception):
    """The demo saw something other than what it set out to show."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs while the demo plays."""

    registry: Registry
    daemon: Daemon
    cri: Cri
    reference: str
    model: Path
    image: str


def main() -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = needs.lazy_folder()
    try:
        if reason := needs.missing_for_lazy(folder):
            console.print(f"The demo cannot run on this machine: {reason}.\n{_ELSEWHERE}", soft_wrap=True)
            return 3
        with settled(folder):
            _play(console, folder)
    except debian.Unavailable as reason:
        console.print(f"The demo cannot get what it needs: {reason}", soft_wrap=True)
        return 3
    except (NotAsPromised, Failed, AssertionError) as reason:
        console.print(f"[bold]not as promised:[/] {reason}", soft_wrap=True, markup=True)
        return 1
    except grpc.RpcError as reason:
        said = reason.details() if isinstance(reason, grpc.Call) else reason
        console.print(f"not as promised: containerd says: {said}", soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything was stopped and removed")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print("Everything was stopped and removed.")
    return 0


def _play(console: Console, folder: Path) -> None:
    with ExitStack() as stack:
        try:
            _act(console, _set(console, folder, stack))
        except BaseException:
            _show_log(console, folder / "daemon/daemon.log")
            raise
        finally:
            # From here on things are taken down, which a second Ctrl-C must not cut short.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _show_log(console: Console, log: Path) -> None:
    if log.exists():
        console.print("the end of the daemon's log:")
        for line in log.read_text(errors="replace").splitlines()[-15:]:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _set(console: Console, folder: Path, stack: ExitStack) -> Stage:
    """Starts everything, and puts the model into the registry."""
    console.print(f"everything lives in {folder}")
    console.print(
        f"containerd {debian.containerd()}, runc {debian.runc()}, registry {debian.docker_registry()}", soft_wrap=True
    )
    model = debian.real_model()
    registry = stack.enter_context(Registry(folder / "registry"))
    daemon = Daemon(folder / "daemon", {"fetch": {"prefetch": False}}, hosts_dir=folder / "containerd/certs.d")
    image = registry.push.image()
    containerd = Containerd(folder / "containerd", image.reference, daemon.for_containerd)
    containerd.hosts(registry)
    # The daemon first: containerd asks its snapshotter as soon as it starts; and last down, when no pod is left.
    stack.enter_context(daemon)
    stack.enter_context(containerd)
    reference = f"{registry.host}/models/all-minilm-l6-v2:v1"
    _cli(daemon, "pack", model, "-t", reference, "--push")
    console.print(
        f"packed and pushed {_size(model):,} bytes as {reference}, one raw ModelPack layer a file", soft_wrap=True
    )
    console.print(
        "prefetch is off until the container has read its first MiB, so that what is fetched is what was read\n"
    )
    return Stage(registry, daemon, containerd.cri, reference, model, containerd.cri.pull(image.reference))


def _act(console: Console, stage: Stage) -> None:
    stage.registry.forget()
    timeline = Timeline(stage.registry.bytes_served, _size(stage.model))
    with timeline.step("PullImage answered"):
        volume = stage.cri.pull(stage.reference)
    with timeline.step("container with the image volume runs"):
        pod = stage.cri.run_pod("demo")
        container = stage.cri.create_container(pod, stage.image, {"/model": volume})
        stage.cri.start(container)
    with timeline.step("its first MiB of weights read"):
        first = _read(stage, container, f"head -c {_FIRST} /model/{_WEIGHTS} | sha256sum").split()[0]
    _check(first == _sha256(stage.model / _WEIGHTS, _FIRST), "the first MiB differs from the source")
    share = timeline.share(timeline.moments[-1])
    _check(share < _MOST_AT_FIRST, f"the registry had served {share:.1%} of the model for the first MiB")
    with timeline.step("every file read, all checksums right"):
        sums = _read(stage, container, "cd /model && find . -type f -exec sha256sum {} +")
    _check(_listed(sums) == _source(stage.model), "files in the container differ from the source")
    with timeline.step("modelvold pull: present, durable, verified"):
        _cli(stage.daemon, "pull", stage.reference)
    refused = stage.cri.exec(container, ["/bin/touch", "/model/new"])
    _check(b"Read-only file system" in refused.stderr, "the volume could be written to")
    timeline.show(console)
    console.print("Each step's end; a file that was read is not fetched again.\n\n$ modelvold status")
    console.print(_cli(stage.daemon, "status"), markup=False, soft_wrap=True)
    stage.cri.remove_pod(pod)
    stage.cri.remove_image(volume)


def _read(stage: Stage, container: str, script: str) -> str:
    ran = stage.cri.exec(container, ["/bin/sh", "-c", script])
    _check(ran.code == 0, f"{script!r} in the container failed: {ran.stderr.decode(errors='replace').strip()}")
    return ran.stdout.decode()


def _cli(daemon: Daemon, *words: str | Path) -> str:
    ran = daemon.cli(*words)
    _check(ran.returncode == 0, f"modelvold {words[0]} failed with status {ran.returncode}: {ran.stderr.strip()}")
    return ran.stdout


def _check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise NotAsPromised(otherwise)


def _listed(sums: str) -> dict[str, str]:
    """`sha256sum`'s lines, by path below the volume."""
    pairs = (line.split(maxsplit=1) for line in sums.splitlines())
    return {path.removeprefix("./"): digest for digest, path in pairs}


def _source(model: Path) -> dict[str, str]:
    return {name: _sha256(model / name) for name in files_of(model)}


def _sha256(path: Path, length: int = -1) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()


def _size(model: Path) -> int:
    return sum((model / name).stat().st_size for name in files_of(model))


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends the demo as Ctrl-C does: everything is taken down."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
