"""A volume that is complete leaves FUSE for whoever comes then; who has it goes on having it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.lab.backends import FUSE
from tests.lab.content import Generated
from tests.lab.daemon import Daemon, Settings
from tests.lab.mounts import mounted
from tests.lab.reader import Piece, Reader
from tests.lab.registry import Registry
from tests.system.node import ok, segments_of, status_of

pytestmark = pytest.mark.system

_MIB = 1 << 20
_CONTENT = Generated(40 * _MIB + 77, seed=95)


def test_a_complete_volume_leaves_fuse_for_who_comes_then(folder: Path) -> None:
    """The old reader reads on through the process, the new one through the kernel alone, after a restart as well; each hinders the removal;
    and what the kernel reads alone is not evicted for another model, since it would not be asked for again."""
    quota = 64
    settings: Settings = {"fetch": {"prefetch": False}, "mount": FUSE.setting, "store": {"quota": f"{quota} MiB"}}
    old, new = folder / "old", folder / "new"
    with Registry(folder / "registry") as registry, Daemon(folder / "daemon", settings) as daemon:
        model = registry.push.model({"m.bin": _CONTENT})
        other = registry.push.model({"o.bin": Generated(40 * _MIB, seed=96)}, "models/other")
        for at in (old, new):
            at.mkdir()
        ok(daemon, "mount", model.reference, old)
        with Reader([old / "m.bin"]) as first:
            _check(first, Piece(0, 5 * _MIB, 4096))
            ok(daemon, "pull", model.reference)
            assert (_shown(daemon), _type(old)) == ("fuse", "fuse.modelvold")
            ok(daemon, "mount", model.reference, new)
            assert (_shown(daemon), _type(old), _type(new)) == ("complete", "fuse.modelvold", "erofs")
            with Reader([new / "m.bin"]) as second:
                for reader in (first, second):
                    _check(reader, Piece(0, 30 * _MIB + 3, 70_000), Piece(0, 0, _MIB, is_mapped=True))
                daemon.restart()
                assert (_shown(daemon), _type(new)) == ("complete", "erofs")
                for reader in (first, second):
                    _check(reader, Piece(0, 20 * _MIB, _MIB), Piece(0, 39 * _MIB, _MIB, is_mapped=True))
            refused = daemon.cli("pull", other.reference)
            assert refused.returncode == 1
            assert "room" in refused.stderr
            ok(daemon, "rm", other.reference)
            ok(daemon, "umount", new)
            assert daemon.cli("rm", model.reference).returncode == 1
        ok(daemon, "umount", old)
        ok(daemon, "rm", model.reference)
        assert segments_of(daemon) == []
        assert [mount.point for mount in mounted(daemon.run) if "/volumes/" in mount.point] == []


def _check(reader: Reader, *pieces: Piece) -> None:
    for piece, answer in zip(pieces, reader.read(list(pieces)), strict=True):
        assert answer.sha256 == hashlib.sha256(_CONTENT.at(piece.offset, piece.length)).hexdigest(), answer


def _shown(daemon: Daemon) -> str:
    (backend,) = {volume["backend"] for volume in status_of(daemon)["volumes"]}
    return str(backend)


def _type(at: Path) -> str:
    (mount,) = mounted(at)
    return mount.type
