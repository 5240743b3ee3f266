"""`serve` by somebody who may not: a sentence and a next step, no traceback. As a real user: tests/system/test_user.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelvold import config
from modelvold.cli.asking import client
from modelvold.errors import Failing, Unreachable, Unsupported
from modelvold.serve import run


def test_serve_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Unsupported, match="needs root") as refused:
        run(config.load(root=tmp_path / "root", run=tmp_path / "run", environment={}))
    assert "`modelvold serve --user`" in refused.value.remedy
    assert not (tmp_path / "root").exists()


def test_a_user_is_told_how_to_have_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("MODELVOLD_ADDRESS", raising=False)
    with client(None) as daemon, pytest.raises(Unreachable, match=str(tmp_path / "modelvold/modelvold.sock")) as nobody:
        daemon.report()
    assert "`modelvold serve --user`" in nobody.value.remedy
    assert "systemctl" not in nobody.value.remedy


@pytest.mark.parametrize("for_user", [False, True])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_user: bool) -> None:
    if os.geteuid() != 0 and not for_user:
        pytest.skip("not root: another refusal comes first")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "file").write_text("in the way")
    for places, said, flag in (
        ({"root": tmp_path / "file/root", "run": tmp_path / "run"}, f"store {tmp_path}/file/root: ", "--root"),
        ({"root": tmp_path / "root", "run": tmp_path / "file/run"}, f"run folder {tmp_path}/file/run: ", "--run"),
    ):
        with pytest.raises(Failing, match=f"{said}.*Not a directory") as refused:
            run(config.load(**places, for_user=for_user, environment={}))
        assert f"name another with {flag}" in refused.value.remedy
