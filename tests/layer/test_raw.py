from __future__ import annotations

from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Entry, Kind, Toc


def test_a_raw_layer_is_one_file_of_roots_that_all_may_read() -> None:
    toc = toc_of_raw("weights/model.safetensors", 12345, 0o106700, 1_700_000_000_123_456_789)

    entry = Entry("weights/model.safetensors", Kind.FILE, mode=0o744, mtime=1_700_000_000_123_456_789, size=12345)
    assert toc == Toc((entry,), 12345)
    assert (entry.uid, entry.gid, entry.offset) == (0, 0, 0)
