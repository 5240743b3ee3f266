"""The verbs as an operator types them: real processes, a real socket, an operator in memory behind it."""

from __future__ import annotations

import http.server
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from modelvold import config
from modelvold.cli import logs
from modelvold.errors import Failure, InUse, NotFound
from modelvold.lending.report import NodeReport, Progress, Report, VolumeReport
from modelvold.rpc.control import control_door
from modelvold.rpc.server import Server

from tests.lab.registry import Registry

ROOT = Path(__file__).parents[2]
VERBS = ["serve", "status", "mount", "umount", "pull", "rm", "pack"]
NODE = NodeReport("0.1.0", "lazy", "seen working", "/s", "ok", 1, 3, 2, 1, 1.0, "127.0.0.1:7878", True, 1, 0, "")
VOLUME = VolumeReport("v", "h/m:v1", "sha256:0", "lazy", "lazy", "/p", 10, 5, 5, 0, 2, 1, 1.0, 5.0, (), ("pod a",), "")
STEP = Progress("h/m:v1", 10, 5, 4, 3, 2.5, done=False)


class InMemory:
    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.failure: Failure | None = None
        self.steps = [STEP, replace(STEP, present=10, durable=10, verified=10, done=True)]
        self.before_mount: list[Progress] = []
        self.held = threading.Event()
        self.cancelled = threading.Event()

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.failure:
            raise self.failure

    def report(self, reference: str | None) -> Report:
        self._note("report", reference)
        return Report(NODE, (VOLUME,))

    def mount(
        self, reference: str, directory: Path, cancelled: Callable[[], bool]
    ) -> Iterator[Progress | VolumeReport]:
        self._note("mount", reference, directory)
        yield from self.before_mount
        yield VOLUME

    def unmount(self, directory: Path) -> None:
        self._note("unmount", directory)

    def pull(self, reference: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        self._note("pull", reference)
        for step in self.steps:
            yield step
            while self.held.is_set():
                if cancelled():
                    self.cancelled.set()
                    return

    def remove(self, reference: str) -> int:
        self._note("remove", reference)
        return 3 << 30


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "run" / "m.sock"


@pytest.fixture
def operator(address: Path) -> Iterator[InMemory]:
    behind = InMemory()
    with Server(address, [control_door(behind)]):
        yield behind


def _environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name not in {"MODELVOLD_ADDRESS", "DOCKER_CONFIG"}}
    return {**kept, "PYTHONPATH": str(ROOT / "daemon"), "COLUMNS": "100", **more}


def _start(*words: object, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "modelvold", *map(str, words)],
        env=_environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def _run(*words: object, **more: str) -> tuple[int, str, str]:
    with _start(*words, **more) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_starts_with_the_verb(verb: str) -> None:
    code, out, err = _run(verb, "--help")
    assert (code, err) == (0, "")
    assert f"Example: modelvold {verb} " in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["pull"], "Missing argument 'REF'"),
        (["status", "--bogus"], "No such option"),
        (["mount", "h/m", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
        (["pack", "/tmp", "-t", "h/m"], "--output"),
        (["pack", "/tmp", "--push"], "--tag"),
    ],
)
def test_wrong_usage_is_two(words: list[str], says: str) -> None:
    code, out, err = _run(*words)
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("modelvold: ")
    assert says in first
    assert "--help` shows an example" in second


def test_no_verb_is_wrong_usage_too() -> None:
    code, out, err = _run()
    assert (code, out) == (2, "")
    assert all(verb in err for verb in VERBS)


def test_a_daemon_that_does_not_run(address: Path) -> None:
    for verb in (["status"], ["pull", "h/m"], ["rm", "h/m"], ["mount", "h/m", "/tmp"], ["umount", "/tmp"]):
        code, out, err = _run(*verb, "--address", address)
        assert (code, out) == (1, "")
        assert err.splitlines() == [
            f"modelvold: the daemon is not running: there is no socket {address}",
            "start it with `systemctl start modelvold` or `modelvold serve`; another socket is named by --address",
        ]


def test_status(operator: InMemory, address: Path) -> None:
    code, out, err = _run("status", "--address", address)
    assert (code, err) == (0, "")
    assert "h/m:v1" in out
    assert "50 %" in out
    code, out, _ = _run("status", "h/m:v1", "--json", MODELVOLD_ADDRESS=str(address))
    found = json.loads(out)
    assert code == 0
    assert found["volumes"][0]["present"] == 5
    assert found["volumes"][0]["consumers"] == ["pod a"]
    assert found["node"]["backend"] == "lazy"
    assert operator.asked == [("report", None), ("report", "h/m:v1")]


def test_watching_ends_with_ctrl_c(operator: InMemory, address: Path) -> None:
    with _start("status", "--watch", "--json", "--address", address) as process:
        assert process.stdout
        for _ in range(2):
            assert json.loads(process.stdout.readline())["volumes"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert len(operator.asked) >= 2


def test_a_mount_that_waits_says_how_far_it_is(operator: InMemory, address: Path, tmp_path: Path) -> None:
    operator.before_mount = operator.steps
    code, out, err = _run("mount", "h/m:v1", tmp_path, "--address", address)
    assert (code, out) == (0, "")
    half, whole, said = err.splitlines()
    assert half.startswith("h/m:v1: 50 % present")
    assert "done" in whole
    assert said.startswith("h/m:v1: 10 B at")


def test_mount_umount_rm(operator: InMemory, address: Path, tmp_path: Path) -> None:
    for words, said in (
        (["mount", "h/m:v1", tmp_path], "h/m:v1: 10 B at"),
        (["umount", tmp_path], ""),
        (["rm", "h/m:v1"], "freed 3.00 GiB"),
    ):
        code, out, err = _run(*words, "--address", address)
        assert (code, out) == (0, "")
        assert said in err
    assert operator.asked == [("mount", "h/m:v1", tmp_path), ("unmount", tmp_path), ("remove", "h/m:v1")]


def test_folders_are_absolute_when_the_daemon_hears_of_them(operator: InMemory, address: Path) -> None:
    assert _run("umount", "x", "--address", address)[0] == 0
    assert operator.asked == [("unmount", Path.cwd() / "x")]


@pytest.mark.parametrize(
    "words", [["status"], ["pull", "h/m"], ["rm", "h/m"], ["mount", "h/m", "/tmp"], ["umount", "/tmp"]]
)
def test_a_failure_is_two_lines_and_one(operator: InMemory, address: Path, words: list[str]) -> None:
    operator.failure = InUse("h/m: used by\n pod \x1b[31ma", "stop it")
    code, out, err = _run(*words, "--address", address)
    assert (code, out) == (1, "")
    assert err.splitlines() == ["modelvold: h/m: used by pod \ufffd[31ma", "stop it"]
    operator.failure = NotFound("h/m: not here")
    assert _run(*words, "--address", address)[2] == "modelvold: h/m: not here\n"


def test_a_pull_says_each_step(operator: InMemory, address: Path) -> None:
    code, out, err = _run("pull", "h/m:v1", "--address", address)
    assert (code, out) == (0, "")
    assert [line.rpartition(", ")[2] for line in err.splitlines()] == ["2 B/s", "done"]
    code, out, err = _run("pull", "h/m:v1", "--json", "--address", address)
    assert (code, err) == (0, "")
    assert [json.loads(line)["done"] for line in out.splitlines()] == [False, True]


def test_a_pull_that_is_not_done_has_failed(operator: InMemory, address: Path) -> None:
    for steps in ([STEP], []):
        operator.steps = steps
        code, _, err = _run("pull", "h/m:v1", "--address", address)
        assert code == 1
        assert "before it was done" in err


def test_ctrl_c_ends_a_pull_here_and_there(operator: InMemory, address: Path) -> None:
    operator.held.set()
    with _start("pull", "h/m:v1", "--json", "--address", address) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (1, "", "\nmodelvold: interrupted\n")  # after the terminal's ^C
    assert operator.cancelled.wait(10)


def test_a_pull_shows_a_bar_on_a_terminal(operator: InMemory, address: Path) -> None:
    screen = _on_a_terminal("pull", "h/m:v1", "--address", address)
    assert "100 % of 10 B" in screen
    assert "100 % verified" in screen
    assert "\u2501" in screen


def test_watching_on_a_terminal(operator: InMemory, address: Path) -> None:
    screen = _on_a_terminal("status", "--watch", "--address", address, end=lambda: len(operator.asked) > 2)
    assert screen.count("VOLUME") >= 2


def test_status_fits_the_terminal(operator: InMemory, address: Path) -> None:
    lines = _on_a_terminal("status", "--address", address, COLUMNS="80").splitlines()
    assert "VOLUME" in lines
    assert max(map(len, lines)) <= 80


def _on_a_terminal(*words: object, end: Callable[[], bool] = lambda: False, **more: str) -> str:
    """What the screen got, without colours; Ctrl-C once `end()`, asked after every write."""
    ours, theirs = pty.openpty()
    environment = _environment(TERM="xterm", LC_ALL="C.UTF-8", **more)
    command = [sys.executable, "-m", "modelvold", *map(str, words)]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen, ended = b"", False
        try:
            while block := os.read(ours, 4096):
                seen += block
                if not ended and end():
                    ended = True
                    process.send_signal(signal.SIGINT)
        except OSError:  # EIO: the other side is closed
            pass
        finally:
            os.close(ours)
        assert process.wait(60) == 0, seen.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def test_a_reader_that_goes_away(operator: InMemory, address: Path) -> None:
    with _start("status", "--watch", "--json", "--address", address) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""


def test_pack_pushes_and_prints_what_pins_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(100_000))
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".gitattributes").write_text("x")
    settings = tmp_path / "config.toml"
    settings.write_text(f'[registry]\nhosts_dir = "{tmp_path}/none"\ndocker_config = "{tmp_path}/none.json"')
    with Registry(tmp_path / "registry") as registry:
        code, out, err = _run("pack", folder, "-t", f"{registry.host}/team/m:v1", "--push", "--config", settings)
        assert code == 0, err
        assert re.fullmatch(rf"{registry.host}/team/m@sha256:[0-9a-f]{{64}}\n", out)
        assert "left out .gitattributes: hidden" in err
        assert "packed 2 files, 97.7 KiB" in err
        assert "sent model.safetensors 97.7 KiB" in err
        code, _, err = _run("pack", folder, "-t", f"{registry.host}/team/m:v2", "--push", "--config", settings)
        assert code == 0
        assert "held model.safetensors" in err
        assert registry.bytes_of("sha256:") == 0
    code, out, err = _run("pack", folder, "-t", f"{registry.host}/team/m:v1", "--push", "--config", settings)
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
            with _start("pack", folder, "-t", f"127.0.0.1:{server.server_port}/m:v1", "--push") as process:
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
    code, out, err = _run("serve", *words)
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
