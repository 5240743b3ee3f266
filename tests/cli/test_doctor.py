"""`doctor` as typed: what it prints, on 80 columns and as JSON, and its exit status."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.cli.doctor import shown
from modelvold.doctor import Level, Line, Report, looking
from modelvold.doctor import examine as examine_
from modelvold.mount.findings import Findings

from tests.doctor.examining import check_form, examine, run

_TEXT = st.text(st.characters(codec="utf-8"), max_size=200) | st.text("ab c\n\x1b[31m", max_size=300)
_LINES = st.builds(Line, st.sampled_from(["store", "kernel"]), st.sampled_from(list(Level)), _TEXT, _TEXT, _TEXT)


def _places(folder: Path) -> tuple[object, ...]:
    return ("--root", folder / "store", "--run", folder / "run", "--containerd", folder / "none.toml")


def _said(*lines: Line, backend: str = "lazy") -> str:
    return "\n".join(shown(Report(lines, backend)))


def test_what_it_looks_like() -> None:
    said = _said(
        Line("store", Level.OK, "folder", "/var/lib/modelvold", ""),
        Line(
            "store",
            Level.WARN,
            "file system",
            "tmpfs " + "which goes " * 9,
            "put it elsewhere:\n    [store]\n\n    root = 1\nor not",
        ),
        Line("containerd", Level.BAD, "config_path", "not set", "set it"),
        Line("containerd", Level.OK, "unpack_config", "", ""),
    )
    assert (
        said
        == """\
store
  ok    folder: /var/lib/modelvold
  warn  file system: tmpfs which goes which goes which goes which goes which
        goes which goes which goes which goes which goes
        mend: put it elsewhere:
            [store]
            root = 1
        or not

containerd
  bad   config_path: not set
        mend: set it
  ok    unpack_config

bad:    config_path
warn:   file system
backend lazy"""
    )


def test_without_a_backend_it_says_so() -> None:
    assert _said(backend="").endswith("backend none: no model can be mounted here")


@settings(max_examples=100, deadline=None)
@given(st.lists(_LINES, max_size=4))
def test_whatever_is_said_fits_and_moves_no_cursor(lines: list[Line]) -> None:
    for text in shown(Report(tuple(lines), "lazy")):
        assert text.isprintable()
        assert len(text) <= 80 or text.startswith(" " * 12)


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    examined = examine(*_places(tmp_path))
    ran = run(*_places(tmp_path))
    assert ran.stderr == ""
    assert ran.returncode == examined.status
    for group in dict.fromkeys(line.group for line in examined.report.lines):
        assert f"{group}\n" in ran.stdout
    for line in examined.report.lines:
        assert f"  {line.level:<4}  {line.what}" in ran.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """A settings file's text and a reference → what is said, on a machine where the probe finds nothing amiss."""
    monkeypatch.setattr(looking, "probe", lambda *_: Findings(()))

    def examined(text: str | None = None, reference: str | None = None) -> Report:
        file = tmp_path / "settings.toml"
        if text:
            file.write_text(text)
        return examine_(
            reference, file if text is not None else None, tmp_path / "store", tmp_path, tmp_path / "none.toml"
        )

    return examined


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("[[[", "not TOML"),
        ("[store]\nroot = 3", "store.root"),
        ("[store]\nrot = 3", "store.rot: not known"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("", "no such file"),
    ],
)
def test_settings_that_the_daemon_would_not_start_with(report: Callable[..., Report], text: str, seen: str) -> None:
    said = report(text)
    assert (said.lines[0].what, said.lines[0].level) == ("file", "bad")
    assert seen in said.lines[0].seen
    assert any(line.what == "kernel" for line in said.lines)


@pytest.mark.parametrize("reference", ["!!", "", "a" * 5000, "h.example/m@sha256:zz", "-", "\x1b[31m"])
def test_what_is_no_reference(report: Callable[..., Report], reference: str) -> None:
    said = report(reference=reference)
    assert (said.lines[-1].what, said.lines[-1].level) == ("reference", "bad")
    check_form(said)


def test_help_shows_an_example() -> None:
    ran = run("--help")
    assert ran.returncode == 0
    assert re.search(r"Example: modelvold doctor \S+", ran.stdout)
