"""The verbs that ask no daemon, and how the daemon's own log looks."""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import signal
import threading
from pathlib import Path

import pytest
from modelvold import config
from modelvold.cli import logs

from tests.cli.typed import run, start
from tests.lab.registry import Registry


def test_pack_pushes_and_prints_what_pins_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".gitattributes").write_text("x")
    settings = tmp_path / "config.toml"
    settings.write_text(f'[registry]\nhosts_dir = "{tmp_path}/none"\ndocker_config = "{tmp_path}/none.json"')
    with Registry(tmp_path / "registry") as registry:
        code, out, err = run("pack", folder, "-t", f"{registry.host}/team/m:v1", "--push", "--config", settings)
        assert code == 0, err
        assert re.fullmatch(rf"{registry.host}/team/m@sha256:[0-9a-f]{{64}}\n", out)
        assert "left out .gitattributes: hidden" in err
        assert "packed 2 files, 97.7 KiB" in err
        assert "sent model.safetensors 97.7 KiB" in err
        code, _, err = run("pack", folder, "-t", f"{registry.host}/team/m:v2", "--push", "--config", settings)
        assert code == 0
        assert "held model.safetensors" in err
        assert registry.bytes_of("sha256:") == 0
    code, out, err = run("pack", folder, "-t", f"{registry.host}/team/m:v1", "--push", "--config", settings)
    assert (code, out) == (1, "")
    assert f"{registry.host}: Connection refused" in err


def test_ctrl_c_ends_a_push_that_waits_for_an_answer(tmp_path: Path) -> None:
    """The registry has the whole blob and says nothing: an answer is waited for much longer than a person does."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"x")
    waiting, done = threading.Event(), threading.Event()

    class Asked(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200)

        def do_HEAD(self) -> None:
            self._send(404)

        def do_POST(self) -> None:
            self._send(202)

        def do_PUT(self) -> None:
            waiting.set()
            done.wait(120)

        def _send(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Location", "/v2/m/blobs/uploads/1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            with start("pack", folder, "-t", f"127.0.0.1:{server.server_port}/m:v1", "--push") as process:
                assert waiting.wait(60)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
                assert (process.returncode, out) == (1, "")
                assert err.endswith("modelvold: interrupted\n")
        finally:
            done.set()
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(("words", "says"), [(["--config", "/absent"], "/absent: no such file")])
def test_serve_with_settings_that_are_wrong(words: list[str], says: str) -> None:
    code, out, err = run("serve", *words)
    assert (code, out) == (1, "")
    assert err.startswith(f"modelvold: {says}\n")


@pytest.mark.parametrize("kind", ["text", "json"])
def test_log_lines(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    try:
        logs.configure(config.Log(level="info", format=kind))  # type: ignore[arg-type]
        log = logging.getLogger("modelvold.test")
        log.info("pull reference=%s", "a\nb\x1b")
        log.debug("quiet")
        try:
            int("x")
        except ValueError:
            log.exception("fail verb=pull")
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    lines = capfd.readouterr().err.splitlines()
    assert "quiet" not in "".join(lines)
    if kind == "json":
        first, second = map(json.loads, lines)
        assert (first["event"], first["level"], first["room"]) == ("pull reference=a\nb\x1b", "info", "modelvold.test")
        assert "ValueError" in second["trace"]
    else:
        assert re.fullmatch(r"\S+ INFO    modelvold\.test: pull reference=a\\nb\\x1b", lines[0])
        assert "fail verb=pull" in lines[1]
