"""hosts.toml files: which lead to the façade, and which containerd would skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelvold.doctor import containerd_says, hosts_files
from modelvold.doctor.hosts_files import HostsFile
from modelvold.doctor.line import Line

FACADE = "127.0.0.1:7878"
ROOT = Path("/etc/containerd/certs.d")
LEADS = f'server = "https://r.example"\n[host."http://{FACADE}"]\n  capabilities = ["pull", "resolve"]\n'
ASIDE = 'server = "https://other.example"\n'
NEW = (2, 2)


def file(registry: str, text: str | bytes) -> HostsFile:
    return HostsFile(ROOT / registry / "hosts.toml", text.encode() if isinstance(text, str) else text)


def said(*files: HostsFile, facade: str = FACADE, version: tuple[int, int] | None = NEW) -> list[Line]:
    return list(hosts_files.check(ROOT, files, facade, version))


def test_those_that_lead_are_named() -> None:
    (line,) = said(
        file("r.example_5000_", LEADS), file("_default", LEADS), file("b.example", ASIDE), file("_old", "[[[")
    )
    assert (line.level, line.what) == ("ok", "hosts.toml")
    assert line.seen == "lead to the façade: _default, r.example:5000; not the façade: b.example"


def test_many_are_counted() -> None:
    (line,) = said(*(file(f"r{n}.example", LEADS) for n in range(9)))
    assert line.seen.endswith("r3.example and 5 more")


def test_none_leads() -> None:
    for files in ([], [file("b.example", ASIDE)]):
        (line,) = said(*files)
        assert line.level == "bad"
        assert f'    [host."http://{FACADE}"]' in line.mend


def test_the_mend_leads() -> None:
    (line,) = said()
    code = "\n".join(text for text in line.mend.splitlines() if text.startswith("    "))
    assert [line.level for line in said(file("registry.example.com", code))] == ["ok"]


def test_without_a_facade_nothing_is_looked_at() -> None:
    (line,) = said(file("a.example", "[[["), facade="")
    assert line.level == "warn"
    assert "off" in line.seen


@pytest.mark.parametrize(
    ("text", "level", "seen"),
    [
        ("[[[", "bad", "not TOML"),
        (b"\xff", "bad", "not TOML"),
        ("a = " + "[" * 5000, "bad", "recursion"),
        ('server = "http://[x"', "bad", "IPv6"),
        ('[host."ftp://x"]', "bad", "'ftp:'"),
        (LEADS.replace('"pull", "resolve"', '"pull", "resolv"'), "bad", "capability 'resolv'"),
        (LEADS.replace('["pull", "resolve"]', '"pull"'), "bad", "no list"),
        (LEADS.replace("http://127", "https://127"), "bad", "by https"),
        (LEADS.replace("http://127", "127"), "bad", "by https"),
        (LEADS.replace('"pull", ', ""), "bad", "not asked to pull"),
        (LEADS.replace(', "resolve"', ""), "bad", "not asked to resolve"),
        ('[host."https://mirror.example"]\n' + LEADS.partition("\n")[2], "warn", "https://mirror.example is asked before"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one(text: str, level: str, seen: str) -> None:
    line, *_ = said(file("r.example", text), file("s.example", LEADS))
    assert (line.level, line.what) == (level, "hosts.toml of r.example")
    assert "/etc/containerd/certs.d/r.example/hosts.toml" in line.seen
    assert seen in line.seen


def test_a_mirror_that_only_pulls_may_come_first() -> None:
    first = '[host."https://mirror.example"]\n  capabilities = ["pull"]\n'
    assert [line.level for line in said(file("r.example", first + LEADS.partition("\n")[2]))] == ["ok"]


@pytest.mark.parametrize(("version", "level"), [((2, 1), "bad"), ((2, 2), "ok"), (None, "warn")])
def test_referrers_are_known_from_2_2_on(version: tuple[int, int] | None, level: str) -> None:
    for text in (LEADS.replace("resolve", 'resolve", "referrers'), f'capabilities = ["referrers"]\n{LEADS}'):
        assert said(file("r.example", text), version=version)[0].level == level


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    assert containerd_says.hosts_files(tmp_path / "none") == []
    (tmp_path / "a.example").mkdir()
    (tmp_path / "b.example").mkdir()
    (tmp_path / "b.example/hosts.toml").write_text(LEADS)
    (tmp_path / "c.example").touch()
    (tmp_path / "d.example/hosts.toml").mkdir(parents=True)
    found = containerd_says.hosts_files(tmp_path)
    assert [(each.registry, each.trouble) for each in found] == [("b.example", ""), ("d.example", "Is a directory")]
    assert found[0].document == LEADS.encode()
    assert [line.level for line in said(*found)] == ["bad", "ok"]
    file_in_the_way = containerd_says.hosts_files(tmp_path / "c.example")
    assert [each.trouble for each in file_in_the_way] == [os.strerror(20)]
    assert said(*file_in_the_way)[0].level == "bad"
