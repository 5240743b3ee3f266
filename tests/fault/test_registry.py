"""A registry that fails while a mounted model is read: what readers get, what is said of it, and that it is over when it is over.

One daemon, and for each fault a registry of its own with a model of its own. All of them fail at once, each in its way, so that
whatever one of them costs another is seen too:

1. every model is mounted and one of its files read: so far all is well;
2. the faults begin; of each model another file is read, by a process of its own, and where that ends with an error three times more at
   once, while the gate's cool-down lasts: no request may be made for that;
3. status and log are looked at;
4. the faults end; with the cool-down over, all of it is read.
"""

from __future__ import annotations

import errno
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from modelvold.errors import Failure
from modelvold.lending.report import VolumeReport
from modelvold.mount.waits import COOL_DOWN
from modelvold.oci.digest import Digest
from modelvold.rpc.control import ControlClient

from tests.fakes.registry import Auth, Behaviour, FakeRegistry, Generated, generated
from tests.fault.registries import DEADLINE, FAULTS, SIZE, Site
from tests.fault.tally import Tally
from tests.lab.daemon import Daemon
from tests.lab.mounts import unmount_below
from tests.lab.program import wait_until
from tests.lab.reader import Piece, Reader

pytestmark = pytest.mark.system

_LOUD = re.compile(r" (WARNING|ERROR|CRITICAL) ")
_MANY = 60


@dataclass
class Seen:
    """Of one fault: how many reads were right and how many denied, `during` it and `after` it; how many requests it `asked` for."""

    site: Site
    during: tuple[int, int] = (0, 0)
    asked: int = 0
    status: str = ""
    after: tuple[int, int] = (0, 0)
    error: str = ""
    lines: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def daemon(module_folder: Path) -> Iterator[Daemon]:
    settings: dict[str, dict[str, object]] = {
        "fetch": {"prefetch": False, "deadline": DEADLINE, "connections": 64},
        "store": {"reserve": ""},
    }
    with Daemon(module_folder / "d", settings) as daemon:
        yield daemon
        unmount_below(module_folder)


@pytest.fixture(scope="module")
def seen(daemon: Daemon, module_folder: Path, tally: Tally) -> Iterator[dict[str, Seen]]:
    """All of the story, told by the tests one by one."""
    with ExitStack() as stack:
        sites = {
            name: _site(stack, daemon, module_folder, name, fault.place, seed)
            for seed, (name, fault) in enumerate(FAULTS.items())
        }
        control = stack.enter_context(ControlClient(daemon.socket))
        found = {name: Seen(site) for name, site in sites.items()}
        for site in sites.values():
            _mount(stack, control, site)
        _read(found, tally, file=0)
        _fail(found, tally)
        _look(found, daemon, control)
        _mend(found, tally)
        yield found


def _site(stack: ExitStack, daemon: Daemon, folder: Path, name: str, place: str, seed: int) -> Site:
    registry = stack.enter_context(FakeRegistry(auth=Auth(bearer=True) if place == "token" else None))
    other = stack.enter_context(FakeRegistry())
    normal = Behaviour(redirect_to=other.origin) if place == "stored" else Behaviour()
    data = generated(SIZE, seed=500 + seed).read(0, SIZE)
    site = Site(name, daemon, registry, other, data, normal, folder / f"mnt{seed}")
    files = {"warm.bin": data[:70_000], "cold.bin": data}
    registry.add_model("models/one", "v1", files)
    other.add_model("models/one", "v1", files)
    site.digest = next(digest for digest, blob in registry.blobs.items() if blob.size == SIZE)
    site.lead(registry.origin, other.origin if place == "mirrored" else "")
    daemon.login(registry.address, "user", "secret")
    registry.behaviour = normal
    return site


def _mount(stack: ExitStack, control: ControlClient, site: Site) -> None:
    site.at.mkdir()
    *_, volume = control.mount(f"{site.registry.address}/models/one:v1", site.at)
    assert isinstance(volume, VolumeReport)
    site.reader = stack.enter_context(Reader([site.at / "warm.bin", site.at / "cold.bin"]))


def _read(found: dict[str, Seen], tally: Tally, file: int) -> dict[str, tuple[int, int]]:
    """All of a file, by all readers at once: how many pieces were right, and how many denied, for each."""
    pieces = {name: _pieces(seen.site, file) for name, seen in found.items()}
    for name, seen in found.items():
        seen.site.reader.ask(pieces[name])
    counts = {}
    for name, seen in found.items():
        data = seen.site.data
        try:
            right, denied = tally.read(
                pieces[name], seen.site.reader.answers(), lambda _, at, length, data=data: data[at : at + length]
            )
        except AssertionError as error:
            seen.error = str(error)
        else:
            counts[name] = (len(right), len(denied))
    return counts


def _pieces(site: Site, file: int) -> list[Piece]:
    if file == 0:
        return [Piece(0, 0, 70_000)]
    return [Piece(1, 0, SIZE), Piece(1, 9, SIZE - 9, is_mapped=True)] * 2


def _fail(found: dict[str, Seen], tally: Tally) -> None:
    before = {name: seen.site.requests for name, seen in found.items()}
    for name, seen in found.items():
        FAULTS[name].begin(seen.site)
        tally.fault()
    for name, counts in _read(found, tally, file=1).items():
        found[name].during = counts
        found[name].asked = found[name].site.requests - before[name]


def _look(found: dict[str, Seen], daemon: Daemon, control: ControlClient) -> None:
    ran = daemon.cli("status", "--json")
    assert ran.returncode == 0, ran.stderr
    errors = {volume["reference"]: volume["last_error"] for volume in json.loads(ran.stdout)["volumes"]}
    lines = [line for line in daemon.log_text().splitlines() if _LOUD.search(line)]
    for seen in found.values():
        seen.status = errors[f"{seen.site.registry.address}/models/one:v1"]
        seen.lines = [line for line in lines if seen.site.digest in line]


def _mend(found: dict[str, Seen], tally: Tally) -> None:
    for seen in found.values():
        site = seen.site
        site.registry.auth = Auth(bearer=True) if site.registry.auth else None
        site.registry.behaviour, site.other.behaviour = site.normal, Behaviour()
        site.hold(site.data)
        if FAULTS[site.name].place != "mirrored":
            site.lead(site.registry.origin)
    time.sleep(COOL_DOWN + 0.5)
    for name, counts in _read(found, tally, file=1).items():
        found[name].after = counts


@pytest.mark.parametrize("name", FAULTS)
def test_fault(seen: dict[str, Seen], name: str) -> None:
    """Right bytes or EIO while it lasts, EIO at once until the cool-down ends, the cause in status and in a few lines of the log, and
    right bytes when it is over."""
    fault, found = FAULTS[name], seen[name]
    assert not found.error
    assert found.after == (4, 0), "not right when it was over"
    if not fault.cause:
        assert found.during == (4, 0)
        assert found.status == ""
        assert len(found.lines) <= 2, found.lines
        return
    assert found.during == (0, 4)
    assert re.search(fault.cause, found.status), found.status
    assert found.asked == 1 if fault.is_final else found.asked in fault.asked
    assert any(re.search(fault.cause, line) for line in found.lines)
    assert len(found.lines) <= 4, found.lines


#: Reads 4 KiB at each of the offsets, all at once; argv: file, offsets. Prints how many were right in length, and how many EIO.
_AT_ONCE = """
import errno, os, sys, threading
file, right, denied = os.open(sys.argv[1], os.O_RDONLY), [], []
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
def read(at):
    try:
        right.append(len(os.pread(file, 4096, at)) == 4096)
    except OSError as error:
        denied.append(error.errno == errno.EIO)
threads = [threading.Thread(target=read, args=(int(at),)) for at in sys.argv[2:]]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(right), sum(denied))
"""


def test_one_line_for_many_segments(daemon: Daemon, module_folder: Path, tally: Tally) -> None:
    """Sixty segments of one content are waited for and fail by one cause: a line of the fetcher's and one of the gate's."""
    size = _MANY * (16 << 20) + 5
    content = generated(size, seed=400)
    at = module_folder / "many"
    at.mkdir()
    with FakeRegistry() as registry, ControlClient(daemon.socket) as control:
        registry.add_model("models/many", "v1", {})
        digest = _put_huge(registry, content)
        *_, volume = control.mount(f"{registry.address}/models/many:v1", at)
        assert isinstance(volume, VolumeReport)
        assert volume.segments >= _MANY
        registry.behaviour.status = {".*": 503}
        tally.fault()
        offsets = [str(offset) for offset in range(4 << 20, size - 4096, 16 << 20)]
        command = [sys.executable, "-I", "-S", "-c", _AT_ONCE, str(at / "many.bin"), *offsets]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert ran.stdout.split() == ["0", str(len(offsets))]
        tally.denied += len(offsets)
        lines = [line for line in daemon.log_text().splitlines() if _LOUD.search(line) and digest in line]
        assert 1 <= len(lines) <= 3, lines
        assert "answered 503" in lines[0]
        registry.behaviour.status = {}
        time.sleep(COOL_DOWN + 0.5)
        with Reader([at / "many.bin"]) as reader:
            pieces = [Piece(0, int(offset), 4096) for offset in (offsets[3], offsets[-1])]
            right, _ = tally.read(pieces, reader.read(pieces), lambda _, at, length: content.read(at, length))
            assert right == pieces
        control.unmount(at)


def _put_huge(registry: FakeRegistry, content: Generated) -> str:
    """A model of one file too large to be hashed here: its digest is a lie, which is found out by who reads all of it."""
    digest = registry.put_blob(content, Digest.of(b"many"))
    document, media_type = registry.manifests["models/many", "v1"]
    manifest = json.loads(document)
    manifest["layers"] = [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": str(digest),
            "size": content.size,
            "annotations": {"org.cncf.model.filepath": "many.bin"},
        }
    ]
    registry.put_manifest("models/many", "v1", json.dumps(manifest).encode(), media_type)
    return str(digest)


def test_a_silent_registry_delays_no_end(folder: Path, tally: Tally) -> None:
    """SIGTERM while a read, a pull and a question of containerd's wait for a registry that does not answer: the daemon ends in order,
    long before any time-out, and whoever waits is told."""
    with (
        FakeRegistry() as registry,
        Daemon(folder / "d", {"fetch": {"prefetch": False}}) as daemon,
        ExitStack() as stack,
    ):
        registry.add_model("models/one", "v1", {"a.bin": b"a" * 100_000})
        _lead_by_facade(daemon, registry)
        control = stack.enter_context(ControlClient(daemon.socket))
        at = folder / "mnt"
        at.mkdir()
        list(control.mount(f"{registry.address}/models/one:v1", at))
        reader = stack.enter_context(Reader([at / "a.bin"]))
        registry.behaviour.hang = True
        before = len(registry.requests)
        reader.ask([Piece(0, 0, 100_000)])
        told: list[str] = []
        other = f"{registry.address}/models/other:v1"
        asking = [
            threading.Thread(target=lambda: told.append(_pulled(control, other)), name="pull"),
            threading.Thread(target=lambda: told.append(_asked(daemon, registry)), name="facade"),
        ]
        for thread in asking:
            thread.start()
        assert wait_until(lambda: len(registry.requests) >= before + 3), registry.requests[before:]
        tally.fault()
        began = time.monotonic()
        assert daemon.stop() == 0, daemon.log_text()[-2000:]
        print(f"ended after {time.monotonic() - began:.1f} s")
        for thread in asking:
            thread.join()
        assert len([said for said in told if said]) == 2, told
        (answer,) = reader.answers()
        assert answer.errno == errno.EIO
        tally.denied += 1
        assert "Traceback" not in daemon.log_text()
        unmount_below(folder)


def _lead_by_facade(daemon: Daemon, registry: FakeRegistry) -> None:
    folder = daemon.hosts_dir / f"{registry.address.replace(':', '_')}_"
    folder.mkdir(parents=True)
    facade = f'[host."http://{daemon.facade}"]\ncapabilities = ["pull", "resolve"]\n'
    (folder / "hosts.toml").write_text(f'server = "{registry.origin}"\n{facade}')


def _pulled(control: ControlClient, reference: str) -> str:
    """Why it is not."""
    try:
        list(control.pull(reference))
    except Failure as failure:
        return str(failure)
    return ""


def _asked(daemon: Daemon, registry: FakeRegistry) -> str:
    """What the façade answers, as to containerd: a status that is no success, or the end of the connection."""
    asked = http.client.HTTPConnection(daemon.facade, timeout=60)
    try:
        asked.request("HEAD", f"/v2/models/other/manifests/v1?ns={registry.address}")
        status = asked.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        asked.close()
    return str(status) if status >= 400 else ""
