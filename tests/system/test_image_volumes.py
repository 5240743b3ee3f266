"""Models as image volumes of pods: what crosses the wire, who shares what, and what is left when all are gone.

Timings are printed, never asserted (`pytest -s`); what was fetched is what the registry's own log says it served.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.lab.backends import FUSE, Backend
from tests.lab.content import Content, Generated
from tests.lab.daemon import Daemon, Settings
from tests.lab.mounts import mounted
from tests.lab.program import wait_until
from tests.lab.push import Pushed
from tests.lab.registry import Registry
from tests.system.node import Node, node, ok, segments_of, status_of

pytestmark = pytest.mark.system

_MIB = 1 << 20
_SEGMENT = 16 * _MIB


def test_a_large_model_is_fetched_as_it_is_read(folder: Path, record_property: Callable[[str, object], None]) -> None:
    """4 × 512 MiB: listing fetches nothing, 1 MiB at most two segments, all of it each byte once; read-only."""
    files = {f"weights/{n}.safetensors": Generated(512 * _MIB, seed=20 + n) for n in range(4)}
    with node(folder) as here:
        model = here.registry.push.model(files)
        here.registry.forget()
        clock = time.monotonic
        began = clock()
        volume = here.cri.pull(model.reference)
        pulled = clock()
        pod, container = here.container("large", volume)
        running = clock()
        listing = here.sh(container, "ls -lR /model")
        assert listing.count(str(512 * _MIB)) == 4
        assert _weights(here, model) == []

        total: list[int] = []
        reading = 0.0
        # 256 MiB into a file, and half a MiB on either side of a segment's end in another one.
        for path, step, skip, count in (("weights/0", _MIB, 256, 1), ("weights/3", _MIB // 2, 483, 2)):
            here.registry.forget()
            asked = clock()
            name = f"{path}.safetensors"
            said = here.sh(container, f"dd if=/model/{name} bs={step} skip={skip} count={count} | sha256sum")
            reading = clock() - asked if count == 1 else reading
            assert said.split()[0] == hashlib.sha256(files[name].at(step * skip, _MIB)).hexdigest()
            fetched = _weights(here, model)
            assert 1 <= len(fetched) <= 2
            assert sum(fetched) <= 2 * _SEGMENT
            print(f"{name} 1 MiB at {step * skip}: {len(fetched)} requests, {sum(fetched)} bytes")
            total += fetched

        here.registry.forget()
        asked = clock()
        lines = here.sh(container, "cd /model; for f in weights/*; do sha256sum $f & done; wait").splitlines()
        whole = clock() - asked
        assert {path: f"sha256:{digest}" for digest, path in (line.split() for line in lines)} == model.layers
        total += _weights(here, model)
        segments = segments_of(here.daemon)
        assert sum(total) == sum(path.stat().st_size for path in segments) == model.size
        assert len(total) == len(segments)
        timings = {"PullImage": pulled - began, "running": running - pulled, "first MiB": reading, "sha256sum": whole}
        for name, seconds in timings.items():
            record_property(name, round(seconds, 3))
        print({name: round(seconds, 3) for name, seconds in timings.items()})

        refused = here.cri.exec(container, ["/bin/touch", "/model/new"])
        assert refused.code != 0
        assert b"Read-only file system" in refused.stderr
        refused = here.cri.exec(container, ["/bin/sh", "-c", "echo x >>/model/weights/0.safetensors"])
        assert refused.code != 0
        assert b"Read-only file system" in refused.stderr
        here.cri.remove_pod(pod)


def test_pods_share_one_mount_and_leave_nothing(folder: Path, backend: Backend) -> None:
    """One file system for two pods; `rm` refuses while used, naming who; at the end no mount, file or descriptor."""
    files: dict[str, Content] = {"a.safetensors": Generated(70 * _MIB, seed=70), "nested/config.json": b'{"a": 1}'}
    with node(folder, backend) as here:
        model = here.registry.push.model(files)
        here.registry.forget()
        before = _descriptors(here.daemon)
        points = {mount.point for mount in mounted(folder)}
        volume = here.cri.pull(model.reference)
        pods = [here.container(f"sharing-{n}", volume) for n in range(2)]
        assert [shown["backend"] for shown in status_of(here.daemon)["volumes"]] == [backend.name]
        seen = {here.sh(container, "stat -c %d /model").strip() for _, container in pods}
        told = {tuple(_mountinfo(here.sh(container, "cat /proc/self/mountinfo"), "/model")) for _, container in pods}
        assert len(seen) == len(told) == 1, (seen, told)
        assert len({Path(m.point).stat().st_dev for m in mounted(folder) if m.type == "erofs"}) == backend.is_erofs
        for _, container in pods:
            assert (
                f"sha256:{here.sh(container, 'sha256sum /model/a.safetensors').split()[0]}"
                == model.layers["a.safetensors"]
            )
        refused = here.cri.exec(pods[0][1], ["/bin/touch", "/model/new"])
        assert b"Read-only file system" in refused.stderr
        assert here.sh(pods[1][1], "cat /model/nested/config.json") == '{"a": 1}'
        assert sum(_weights(here, model)) == model.size

        _refuses(here, model, "image-volumes")
        here.cri.remove_pod(pods[0][0])
        assert here.sh(pods[1][1], "cat /model/nested/config.json") == '{"a": 1}'
        _refuses(here, model, "image-volumes")
        here.cri.remove_pod(pods[1][0])
        _refuses(here, model, "snapshot ")
        here.cri.remove_image(volume)
        assert wait_until(lambda: {mount.point for mount in mounted(folder)} <= points, 20), mounted(folder)
        ok(here.daemon, "rm", model.reference)
        assert segments_of(here.daemon) == []
        assert list((here.daemon.root / "volumes").iterdir()) == []
        assert wait_until(lambda: _descriptors(here.daemon) <= before, 10), _descriptors(here.daemon) - before
        assert model.reference not in ok(here.daemon, "status").stdout


def test_rm_names_the_folder_or_program_that_uses_a_model(folder: Path, backend: Backend) -> None:
    """`rm` refuses while an operator's mount stands, and while a program has a file of the volume open."""
    settings: Settings = {"fetch": {"prefetch": False}, "mount": backend.setting}
    with Registry(folder / "registry") as registry, Daemon(folder / "d", settings) as daemon:
        content = Generated(3 * _MIB, seed=80)
        model = registry.push.model({"a.bin": content})
        registry.write_hosts(daemon.hosts_dir)
        at = daemon.run / "model"  # closing the daemon takes it away, should the test fail
        at.mkdir()
        ok(daemon, "mount", model.reference, at)
        said = daemon.cli("rm", model.reference)
        assert said.returncode == 1
        assert f"in use by folder {at}" in said.stderr
        (path,) = (daemon.run / "volumes").glob("*/a.bin")
        # Who is in a folder of the volume's own mount keeps it, and it is what it was.
        with subprocess.Popen(["/bin/sleep", "600"], cwd=path.parent) as program:
            ok(daemon, "umount", at)
            assert path.read_bytes() == content.at(0, content.size)
            program.kill()
        ok(daemon, "mount", model.reference, at)
        # A file held open there outlives the folder.
        with path.open("rb") as held:
            program = subprocess.Popen(["/bin/sleep", "600"], stdin=held)
        try:
            ok(daemon, "umount", at)
            assert not at.is_mount()
            said = daemon.cli("rm", model.reference)
            assert said.returncode == 1
            assert "in use" in said.stderr
            assert f"sleep ({program.pid})" in said.stderr
        finally:
            program.kill()
            program.wait()
        ok(daemon, "rm", model.reference)
        assert segments_of(daemon) == []
        assert _erofs(folder) == []


def test_a_pod_whose_mount_has_died_is_named_until_it_is_gone(folder: Path) -> None:
    """The process that serves FUSE is killed: the pod gets errors and no byte, status names what runs in it; another pod reads all of it,
    and so does the next container of the same pod."""
    content = Generated(40 * _MIB, seed=90)
    with node(folder, FUSE) as here:
        model = here.registry.push.model({"a.bin": content})
        volume = here.cri.pull(model.reference)
        old, died = here.container("old", volume)
        here.sh(died, "head -c 4096 /model/a.bin | sha256sum")
        (process,) = here.daemon.fuse_processes()
        os.kill(process, signal.SIGKILL)
        refused = here.cri.exec(died, ["/bin/tail", "-c", "100", "/model/a.bin"])
        assert (refused.stdout, refused.code) == (b"", 1)
        assert wait_until(lambda: _stranded(here) == ["sleep"]), status_of(here.daemon)
        new, container = here.container("new", volume)
        assert here.sh(container, "sha256sum /model/a.bin").split()[0] == model.layers["a.bin"].removeprefix("sha256:")
        here.cri.stop(died)
        here.cri.remove(died)
        assert wait_until(lambda: _stranded(here) == [])
        again = here.cri.create_container(old, here.image, {"/model": volume})
        here.cri.start(again)
        assert here.sh(again, "sha256sum /model/a.bin").split()[0] == model.layers["a.bin"].removeprefix("sha256:")
        here.cri.remove_pod(old)
        here.cri.remove_pod(new)
        here.cri.remove_image(volume)


def _stranded(here: Node) -> list[str]:
    """The names of the programs whose mount has died."""
    (shown,) = status_of(here.daemon)["volumes"]
    return [named.split()[0] for named in shown["stranded"]]


def _weights(here: Node, model: Pushed) -> list[int]:
    """The bytes of each request for one of the model's layers since `forget`."""
    return [asked.bytes for digest in model.layers.values() for asked in here.registry.blob_requests(digest)]


def _erofs(folder: Path) -> list[str]:
    return [mount.point for mount in mounted(folder) if mount.type == "erofs"]


def _mountinfo(text: str, point: str) -> list[str]:
    """Device number, root, type and source of what is mounted at `point`."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if fields[4] == point:
            return [fields[2], fields[3], *after.split()[:2]]
    return []


def _descriptors(daemon: Daemon) -> Counter[str]:
    """The files of its store that the daemon has open, the catalog's aside."""
    opened = psutil.Process(daemon.pid).open_files()
    return Counter(re.sub(r"-(wal|shm)$", "", found.path) for found in opened if "catalog.db" not in found.path)


def _refuses(here: Node, model: Pushed, who: str) -> None:
    said = here.daemon.cli("rm", model.reference)
    assert said.returncode == 1
    assert "in use by" in said.stderr
    assert who in said.stderr
