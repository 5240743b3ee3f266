"""Many programs read one model at once: what the registry's own log says it served."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.backends import Backend
from tests.lab.content import Generated, digest_of
from tests.lab.daemon import Daemon, Settings
from tests.lab.registry import Registry
from tests.system.node import ok, segments_of, status_of

pytestmark = pytest.mark.system

_MIB = 1 << 20
_READERS = 8
#: Reads a file's pieces in an order of its own once a line arrives; argv: seed, files. Prints a sha256 a file.
_READER = """
import hashlib, os, random, sys
files = [os.open(name, os.O_RDONLY) for name in sys.argv[2:]]
pieces = [(at, offset) for at, file in enumerate(files) for offset in range(0, os.fstat(file).st_size, 1 << 20)]
random.Random(int(sys.argv[1])).shuffle(pieces)
print("ready", flush=True)
sys.stdin.readline()
read = {(at, offset): os.pread(files[at], 1 << 20, offset) for at, offset in pieces}
for at in range(len(files)):
    print(hashlib.sha256(b"".join(read[key] for key in sorted(read) if key[0] == at)).hexdigest())
"""


@pytest.mark.parametrize("prefetch", [False, True], ids=["read only", "prefetched"])
def test_eight_readers_fetch_each_segment_once(folder: Path, backend: Backend, prefetch: bool) -> None:
    """8 processes read one file all of them and one each, in random order, at once: each byte crosses the wire once."""
    settings: Settings = {"fetch": {"prefetch": prefetch}, "mount": backend.setting}
    shared = Generated(96 * _MIB, seed=50)
    own = [Generated(20 * _MIB + 512 * n + n, seed=51 + n) for n in range(_READERS)]
    files = {"shared.bin": shared, **{f"own/{n}.bin": content for n, content in enumerate(own)}}
    with Registry(folder / "registry") as registry, Daemon(folder / "d", settings) as daemon:
        model = registry.push.model(files)
        registry.write_hosts(daemon.hosts_dir)
        registry.forget()
        at = daemon.run / "model"  # closing the daemon takes it away, should the test fail
        at.mkdir()
        ok(daemon, "mount", model.reference, at)
        for n, said in enumerate(_read_at_once(at)):
            assert said == [digest_of(shared)[7:], digest_of(own[n])[7:]]
        served = {path: registry.blob_requests(digest) for path, digest in model.layers.items()}
        count = Counter({path: len(requests) for path, requests in served.items()})
        segments = status_of(daemon)["volumes"][0]["segments"]
        print(f"prefetch={prefetch}: {count.total()} requests, {segments} segments, {registry.bytes_served()} bytes")
        assert {path: sum(r.bytes for r in requests) for path, requests in served.items()} == {
            path: content.size for path, content in files.items()
        }
        if backend.is_lazy and not prefetch:  # whoever fetches all of it asks for several segments at once
            assert count.total() == segments
        ok(daemon, "umount", at)
        ok(daemon, "rm", model.reference)
        assert not at.is_mount()
        assert segments_of(daemon) == []


def _read_at_once(at: Path) -> list[list[str]]:
    """What the readers print: the sums of the shared file and of their own."""
    with ExitStack() as stack:
        readers = []
        for n in range(_READERS):
            command = [sys.executable, "-c", _READER, str(n), str(at / "shared.bin"), str(at / f"own/{n}.bin")]
            pipe = subprocess.PIPE
            readers.append(stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)))
        for reader in readers:
            assert reader.stdout
            assert reader.stdout.readline() == "ready\n"
        for reader in readers:
            assert reader.stdin
            reader.stdin.write("go\n")
            reader.stdin.flush()
        return [reader.communicate(timeout=120)[0].split() for reader in readers]
