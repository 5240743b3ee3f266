"""The order in which a daemon asks for the bytes of what it has mounted, by what the registry was asked, before and after a restart."""

from __future__ import annotations

import json
import shutil
from itertools import groupby

import pytest

from tests.fakes.content import Generated
from tests.fakes.registry import FakeRegistry
from tests.lab import needs
from tests.lab.check import settled
from tests.lab.daemon import Daemon, Settings
from tests.lab.program import wait_until

pytestmark = pytest.mark.system

MIB = 1 << 20
INDEX = "model.safetensors.index.json"
FIRST, SECOND, TENTH = (f"model-{n}.safetensors" for n in (1, 2, 10))


def _shard(size: int) -> Generated:
    """A header that is 100 bytes long, and nothing else."""
    start = (100).to_bytes(8, "little")
    return Generated(size, lambda at, length: (start[at : at + length] + bytes(length))[:length])


def test_small_files_heads_weights_and_what_is_published_twice() -> None:
    """Over one connection. The map says that one of the shards is of another model; a restart goes on where it was, in the same order."""
    folder = needs.lazy_folder()
    settings: Settings = {"fetch": {"connections": 1}, "mount": {"backend": "lazy"}}
    names = {"weight_map": {"a": SECOND, "b": TENTH}}
    files: dict[str, bytes | Generated] = {
        TENTH: _shard(66 * MIB),
        FIRST: _shard(66 * MIB + 512),
        SECOND: _shard(66 * MIB + 1024),
        "README.md": b"# read me",
        "modeling.py": b"pass",
        INDEX: json.dumps(names).encode(),
    }
    try:
        if missing := needs.missing_for_lazy(folder):
            pytest.skip(missing)
        with settled(folder), FakeRegistry() as registry:
            registry.add_model("models/tiny", "v1", files)
            paths = {
                blob: path for path, file in files.items() for blob, held in registry.blobs.items() if _is(held, file)
            }
            registry.behaviour.rate = 24 * MIB
            reference = f"{registry.address}/models/tiny:v1"
            with Daemon(folder / "d", settings) as daemon:
                at = daemon.run / "at"  # closing the daemon takes it away, should the test fail
                at.mkdir()
                assert daemon.cli("mount", reference, at).returncode == 0
                assert wait_until(lambda: len(_asked(registry, paths)) > 5, 30)
                daemon.restart()
                registry.behaviour.rate = None
                assert wait_until(lambda: _is_complete(daemon), 60)
                assert daemon.cli("umount", at).returncode == 0
            asked = [path for path, _ in groupby(_asked(registry, paths))]
            assert asked == [INDEX, "modeling.py", "README.md", FIRST, SECOND, TENTH, SECOND, TENTH, FIRST]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is(held: Generated, file: bytes | Generated) -> bool:
    return held is file or (isinstance(file, bytes) and held.size == len(file) and held.read(0, held.size) == file)


def _asked(registry: FakeRegistry, paths: dict[str, str]) -> list[str]:
    blobs = [request.path.rpartition("/")[2] for request in tuple(registry.requests) if request.is_blob]
    return [paths[blob] for blob in blobs if blob in paths]


def _is_complete(daemon: Daemon) -> bool:
    (volume,) = json.loads(daemon.cli("status", "--json").stdout)["volumes"]
    return bool(volume["verified"] == volume["size"])
