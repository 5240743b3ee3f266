"""containerd's configuration: the right one, and each wrong one, as a real containerd reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.doctor import containerd, containerd_says
from modelvold.doctor.configuration import Said, Seen, read
from modelvold.doctor.line import Line
from modelvold.doctor.table import IMAGES, RUNTIME, TRANSFER, Ours

from tests.doctor.examining import check_form
from tests.lab import debian

OURS = Ours(
    Path("/run/modelvold/modelvold.sock"), Path("/var/lib/modelvold"), Path("/etc/containerd/certs.d"), Path("/f")
)
GOOD = f"""
version = 3
[proxy_plugins.modelvold]
  type = "snapshot"
  address = "/run/modelvold/modelvold.sock"
  capabilities = ["remap-ids"]
  [proxy_plugins.modelvold.exports]
    root = "/var/lib/modelvold"
    enable_remote_snapshot_annotations = "true"
[[plugins.'{TRANSFER}'.unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
  differ = "walking"
[[plugins.'{TRANSFER}'.unpack_config]]
  platform = "linux"
  snapshotter = "modelvold"
  differ = "walking"
[plugins.'{IMAGES}']
  snapshotter = "modelvold"
[plugins.'{IMAGES}'.registry]
  config_path = "/etc/containerd/certs.d"
"""
_NODE_DEFAULT = f"[plugins.'{IMAGES}']\n  snapshotter = \"modelvold\""
_HANDLER = f"[plugins.'{RUNTIME}'.containerd.runtimes.lazy]\n  runtime_type = \"io.containerd.runc.v2\"\n"
_PULLS = f"[plugins.'{IMAGES}'.runtime_platforms.lazy]\n  snapshotter = \"modelvold\"\n"
_MOUNTS = f'{_HANDLER}  snapshotter = "modelvold"\n'
_RUNC = f"[plugins.'{RUNTIME}'.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"

Look = Callable[[str], list[Line]]


def judged(seen: Seen, ours: Ours = OURS) -> list[Line]:
    reading = read(seen, ours)
    lines = [*reading.lines]
    if reading.table is not None:
        lines += containerd.check(reading.table, ours, reading.version)
    return lines


def wrong(lines: list[Line]) -> dict[str, str]:
    return {line.what: f"{line.level}: {line.seen}" for line in lines if line.level != "ok"}


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """A configuration's text → what is said of it, by way of a real containerd."""
    try:
        program = debian.containerd()
    except debian.Unavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("PATH", str(program.parent))
    file = tmp_path / "config.toml"

    def said(text: str) -> list[Line]:
        file.write_text(text)
        before = sorted(tmp_path.rglob("*"))
        lines = judged(containerd_says.seen(file), Ours(OURS.socket, OURS.store, OURS.hosts_dir, file))
        assert sorted(tmp_path.rglob("*")) == before
        return lines

    return said


def test_the_right_one(look: Look) -> None:
    lines = look(GOOD)
    assert wrong(lines) == {}
    assert [line.what for line in lines] == [
        "containerd",
        "configuration",
        "proxy_plugins.modelvold",
        "exports: root",
        "snapshot annotations",
        "unpack_config",
        "CRI snapshotter",
        "config_path",
    ]


def test_an_empty_one_and_its_mends(look: Look) -> None:
    """What is said to be missing, written down as it is said, is what is right."""
    lines = look("version = 3\n")
    assert set(wrong(lines)) == {"proxy_plugins.modelvold", "unpack_config", "CRI snapshotter", "config_path"}
    code = [text for line in lines for text in line.mend.splitlines() if text.startswith("    ")]
    assert wrong(look("version = 3\n" + "\n".join(code))) == {}


def test_the_mend_of_no_file_is_a_right_one(look: Look) -> None:
    code = [text for text in containerd.whole(OURS).splitlines() if text.startswith("    ")]
    assert wrong(look("\n".join(code))) == {}


def test_what_is_imported_counts(look: Look, tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(GOOD)
    assert wrong(look(f'version = 3\nimports = ["{tmp_path}/more.toml"]\n')) == {}


def test_an_older_version_is_brought_up_to_date(look: Look) -> None:
    older = f"""
version = 2
{GOOD[GOOD.index("[proxy_plugins") : GOOD.index("[[plugins")]}
{GOOD[GOOD.index("[[plugins") : GOOD.index(f"[plugins.'{IMAGES}']")]}
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "modelvold"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
"""
    runtimes = (
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
    )
    found = wrong(look(older + runtimes))
    assert list(found) == ["configuration"]
    assert "of version 2" in found["configuration"]
    # containerd 2.1 forgets the snapshotter of a file that names no runtimes: what it makes of a file is what counts.
    assert set(wrong(look(older))) == {"configuration", "CRI snapshotter"}


@pytest.mark.parametrize(
    ("old", "new", "what", "seen"),
    [
        ('type = "snapshot"', 'type = "content"', "proxy_plugins.modelvold", 'bad: its type is "content"'),
        ('modelvold.sock"', 'other.sock"', "proxy_plugins.modelvold", 'bad: its address is "/run/modelvold/other.sock"'),
        ('"remap-ids"', '"remap-ids", "rebase"', "proxy_plugins.modelvold", 'bad: the capability "rebase"'),
        ('"remap-ids"', "", "proxy_plugins.modelvold", 'warn: without the capability "remap-ids"'),
        ('root = "/var/lib/modelvold"', 'root = "/elsewhere"', "exports: root", "warn: /elsewhere, and the store is"),
        ('root = "/var/lib/modelvold"', "", "exports: root", "warn: not set"),
        ('annotations = "true"', 'annotations = "false"', "snapshot annotations", "bad: off"),
        ("enable_remote_snapshot_annotations", "other", "snapshot annotations", "bad: off, so no layer is known"),
        ('snapshotter = "modelvold"', 'snapshotter = "native"', "unpack_config", "bad: overlayfs, native, and not modelvold"),
        ('snapshotter = "overlayfs"\n', 'snapshotter = "native"\n', "unpack_config", "warn: native, modelvold, and not overlayfs"),
        (_NODE_DEFAULT, "", "CRI snapshotter", "bad: overlayfs, and modelvold for no pod"),
        (_NODE_DEFAULT, _PULLS, "CRI snapshotter", "bad: lazy pulls into modelvold, but does not do both"),
        (_NODE_DEFAULT, _MOUNTS, "CRI snapshotter", "bad: lazy mounts from modelvold, but does not do both"),
        (_NODE_DEFAULT, f'{_NODE_DEFAULT}\n{_RUNC}snapshotter = "overlayfs"', "CRI snapshotter", "bad: modelvold, but the runtime runc"),
        ('config_path = "/etc/containerd/certs.d"', "", "config_path", "bad: not set"),
        ('certs.d"', 'certs.d:/etc/docker/certs.d"', "config_path", "bad: 2 folders"),
        ('certs.d"', 'other.d"', "config_path", "bad: /etc/containerd/other.d, but the façade reads"),
        ("version = 3", 'version = 3\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]', "plugins", "bad: switched off"),
        ("version = 3", "version = 3\nproxy_plugin = 1", "configuration", "warn: containerd knows no key proxy_plugin in line 3"),
        (_NODE_DEFAULT, f'{_NODE_DEFAULT}\nsnapshoter = "x"', "configuration", "warn: containerd knows no key snapshoter of plugins."),
        ('annotations = "true"', "annotations = true", "configuration", "bad: {file}: containerd refuses it: failed to unmarshal"),
        ("version = 3", "version = 3\n[[[", "configuration", "bad: {file}: containerd refuses it"),
        ("version = 3", "version = 9", "configuration", "bad: {file}: containerd refuses it: failed to load"),
    ],
)  # fmt: skip
def test_each_wrong_one(look: Look, tmp_path: Path, old: str, new: str, what: str, seen: str) -> None:
    assert old in GOOD
    found = wrong(look(GOOD.replace(old, new, 1)))
    assert list(found) == [what]
    assert found[what].startswith(seen.format(file=tmp_path / "config.toml"))


@pytest.mark.parametrize(
    "setting",
    [
        "use_local_image_pull = true",
        "discard_unpacked_layers = true",
        "max_concurrent_downloads = 5",
        "image_pull_with_sync_fs = true",
    ],
)
def test_the_older_way_of_pulling(look: Look, setting: str) -> None:
    """Then the export says nothing, `unpack_config` is not used, and annotations have a switch of their own."""
    without = GOOD.replace("    enable_remote_snapshot_annotations", "    #").replace("unpack_config", "unused")
    text = without.replace(_NODE_DEFAULT, f"{_NODE_DEFAULT}\n  {setting}")
    found = {what: seen for what, seen in wrong(look(text)).items() if what != "configuration"}
    assert list(found) == ["snapshot annotations"]
    assert f"because of {setting.split()[0]}" in found["snapshot annotations"]
    mended = text.replace(setting, f"{setting}\n  disable_snapshot_annotations = false")
    assert set(wrong(look(mended))) <= {"configuration"}


def test_mirrors_of_old(look: Look) -> None:
    text = f'{GOOD}\n[plugins.\'{IMAGES}\'.registry.mirrors."docker.io"]\n  endpoint = ["http://x"]\n'
    assert "does not start with both" in wrong(look(text))["config_path"]


def test_a_runtime_class(look: Look) -> None:
    lines = look(GOOD.replace(_NODE_DEFAULT, f"{_PULLS}{_MOUNTS}"))
    assert wrong(lines) == {}
    assert "io.containerd.cri.runtime-handler" in next(line.seen for line in lines if line.what == "CRI snapshotter")


def test_pulls_follow_the_runtime_from_2_3_on() -> None:
    table = {"plugins": {RUNTIME: {"containerd": {"runtimes": {"lazy": {"snapshotter": "modelvold"}}}}}}
    by_version = {
        version: next(line for line in containerd.check(table, OURS, version) if line.what == "CRI snapshotter").level
        for version in ((2, 2), (2, 3), None)
    }
    assert by_version == {(2, 2): "bad", (2, 3): "ok", None: "bad"}


def test_a_plugin_of_another_name_is_found_by_its_socket(look: Look) -> None:
    text = GOOD.replace("proxy_plugins.modelvold", "proxy_plugins.mv").replace(
        'snapshotter = "modelvold"', 'snapshotter = "mv"'
    )
    assert wrong(look(text)) == {}


def test_no_file(look: Look, tmp_path: Path) -> None:
    lines = judged(containerd_says.seen(tmp_path / "none.toml"))
    assert wrong(lines)["configuration"].startswith("bad: /f is not there")
    del look


# --- programs that are not there, are old, or do not answer ---------------------------------------------------------


def program(folder: Path, text: str) -> Path:
    path = folder / "bin/containerd"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def look_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str | None) -> list[Line]:
    monkeypatch.setenv("PATH", f"{program(tmp_path, script).parent}:/usr/bin:/bin")
    monkeypatch.setattr(containerd_says, "_PATIENCE", 0.3)
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    return judged(containerd_says.seen(file))


def test_too_old_a_one_is_all_there_is_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = look_with(tmp_path, monkeypatch, "echo containerd containerd.io v1.7.27 05044ec", GOOD)
    assert wrong(lines).keys() == {"containerd"}
    assert "1.7.27: too old" in wrong(lines)["containerd"]


def test_one_that_hangs_ends_and_its_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"0.{os.getpid()}"
    lines = look_with(tmp_path, monkeypatch, f"sleep 3{mark} & sleep 4{mark}", GOOD)
    assert wrong(lines).keys() == {"containerd", "configuration"}
    assert "in time" in wrong(lines)["containerd"]
    assert "did not say" in wrong(lines)["configuration"]
    assert lines[-1].what == "config_path"
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if mark.encode() in command]


@pytest.mark.parametrize("script", ["exit 0", "head -c 3000 /dev/urandom", "echo version; exit 0"])
def test_one_that_talks_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    lines = look_with(tmp_path, monkeypatch, script, GOOD)
    assert "does not say its version" in wrong(lines)["containerd"]


def test_one_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = look_with(tmp_path, monkeypatch, "\x7fELF", GOOD)
    assert "containerd" in wrong(lines)


def file_alone(document: bytes | None, trouble: str = "") -> list[Line]:
    return judged(Seen(None, None, None, document, trouble))


def test_none_installed() -> None:
    (line,) = file_alone(None)
    assert (line.level, line.what) == ("warn", "containerd")
    assert "work without it" in line.mend


def test_a_file_without_a_program_is_read_as_it_stands() -> None:
    assert wrong(file_alone(GOOD.encode())).keys() == {"containerd"}
    assert "imports was not looked at" in wrong(file_alone(b'imports = ["x"]\n' + GOOD.encode()))["configuration"]


@pytest.mark.parametrize(
    ("document", "seen"),
    [
        (b"version = 2\n", "of version 2"),
        (b"", "of version 1"),
        (b"[[[", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"version = []", "of version []"),
    ],
)
def test_a_file_that_cannot_be_judged(document: bytes, seen: str) -> None:
    found = wrong(file_alone(document))
    assert found.keys() == {"containerd", "configuration"}
    assert seen in found["configuration"]


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert "Permission denied" in wrong(file_alone(None, "Permission denied"))["configuration"]
    assert containerd_says.seen(tmp_path).trouble == "Is a directory"
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    assert containerd_says.seen(tmp_path / "large").trouble == "larger than 1 MiB"


def test_a_dump_that_is_no_toml_leads_to_the_file() -> None:
    version = Said(0, "containerd github.com/containerd/containerd/v2 v2.1.9 x", "")
    lines = judged(Seen(Path("/c"), version, Said(0, "[[[", ""), GOOD.encode(), ""))
    assert wrong(lines).keys() == {"configuration"}


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _spoilt(table: Any, path: tuple[str, ...], junk: Any) -> Any:
    return junk if not path else {**table, path[0]: _spoilt(table.get(path[0], {}), path[1:], junk)}


@settings(max_examples=100, deadline=None)
@given(
    junk=_JUNK,
    path=st.sampled_from(
        [
            ("proxy_plugins",),
            ("proxy_plugins", "modelvold"),
            ("proxy_plugins", "modelvold", "exports"),
            ("proxy_plugins", "modelvold", "capabilities"),
            ("plugins",),
            ("plugins", IMAGES),
            ("plugins", IMAGES, "registry"),
            ("plugins", IMAGES, "registry", "config_path"),
            ("plugins", IMAGES, "runtime_platforms"),
            ("plugins", RUNTIME, "containerd", "runtimes"),
            ("plugins", TRANSFER, "unpack_config"),
            ("disabled_plugins",),
        ]
    ),
)
def test_whatever_stands_in_a_table_becomes_lines(junk: Any, path: tuple[str, ...]) -> None:
    from modelvold.doctor import Report

    lines = tuple(containerd.check(_spoilt({}, path, junk), OURS, None))
    assert lines
    check_form(Report(lines, "lazy"))
