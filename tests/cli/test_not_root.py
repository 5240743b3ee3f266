"""`serve` by somebody who may not: a sentence and a next step, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelvold import config
from modelvold.errors import Failing, Unsupported
from modelvold.serve import run


def test_serve_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Unsupported, match="needs root"):
        run(config.load(root=tmp_path / "root", run=tmp_path / "run", environment={}))
    assert not (tmp_path / "root").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: another refusal comes first")
def test_a_store_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failing, match=r"file.*Not a directory|Not a directory.*"):
        run(config.load(root=tmp_path / "file/root", run=tmp_path / "run", environment={}))
