"""A disk that fails behind the kernel's back: ext4 on a loop device whose backing, a tmpfs, is full.

`write` succeeds there and the file keeps its size; only `fdatasync` tells, and the pages read as zeros afterwards.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.errors import Failing
from modelvold.layer.extent import CHUNK
from modelvold.store.store import Store

from tests.lab.mounts import unmount_below
from tests.lab.needs import missing_for_containers
from tests.lab.program import wait_until
from tests.store.keeping import Notes, add, fill

pytestmark = pytest.mark.system
BACKING = 24 << 20
SEGMENTS = 40


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=30)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Path]:
    if reason := missing_for_containers():
        pytest.skip(reason)
    backing, disk = tmp_path / "backing", tmp_path / "disk"
    backing.mkdir()
    disk.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={BACKING}", "none", backing)
        image = backing / "image"
        image.touch()
        os.truncate(image, 256 << 20)
        _run("mkfs.ext4", "-q", "-F", image)
        _run("mount", "-o", "loop", image, disk)
        yield disk
    finally:
        unmount_below(tmp_path)


def test_a_failed_sync_is_the_end_of_promises(failing_disk: Path) -> None:
    """What was synced before stays recorded; nothing else is called durable, and whoever waits is told."""
    data = os.urandom(SEGMENTS * CHUNK)
    with Store(failing_disk / "store") as store:
        notes = Notes(store)
        store.watch(notes)
        content = add(store, data)
        fill(store, content.segments[0], data)
        assert wait_until(lambda: content.segments[0].durable, 10)
        for segment in content.segments[1:]:
            try:
                fill(store, segment, data)
            except (OSError, Failing):  # the journal has given up, or the first sync: read-only from here on
                break
        assert wait_until(lambda: store.failing is not None, 20), "bytes that never reached a disk were promised"
        with pytest.raises(Failing, match="is failing"):
            store.check()
        with pytest.raises(Failing):
            add(store, data[:CHUNK])
        durable = [segment for segment in content.segments if segment.durable]
        assert content.segments[0] in durable
        assert len(durable) * CHUNK <= BACKING
        assert sorted(n for what, n in notes.told if what == "durable") == [segment.number for segment in durable]
        assert wait_until(lambda: any(isinstance(failure, Failing) for failure in notes.failures), 20)
        lost = [segment for segment in content.segments if not segment.durable]
        assert wait_until(lambda: all(segment.present == 0 for segment in lost), 20), (
            "what may be zeros counts as present"
        )
        assert content.state == "unverified"
