"""What a person sees, from values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.cli import show
from modelvold.lending.report import NodeReport, Progress, Report, VolumeReport, WaitingRead

NODE = NodeReport(
    "0.1.0",
    "lazy",
    "pre-content events seen working",
    "/var/lib/modelvold",
    "ok",
    12 << 30,
    100 << 30,
    40 << 30,
    120 << 20,
    11000.0,
    "127.0.0.1:7878",
    True,
    1234,
    0,
    "",
)
VOLUME = VolumeReport(
    "v1",
    "registry.example/models/llama-3-8b:v1",
    "sha256:0",
    "lazy",
    "lazy",
    "/run/v1",
    15 << 30,
    7 << 30,
    7 << 30,
    1 << 30,
    960,
    448,
    1.2 * (1 << 30),
    6.7,
    (),
    (),
    "",
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1 << 20, "1.00 MiB"),
        (15 << 30, "15.0 GiB"),
        (700 << 30, "700 GiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "-"), (0.25, "0.2 s"), (12.9, "12 s"), (75, "1 min 15 s"), (11000, "3 h 3 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "100 %"), (999_999, 1_000_000, "99 %"), (1, 1, "100 %"), (0, 5, "0 %")]
)
def test_a_hundred_percent_is_all_of_it(part: int, whole: int, text: str) -> None:
    assert show.share(part, whole) == text


def test_a_report_at_80_columns() -> None:
    busy = replace(
        VOLUME,
        waiting=tuple(WaitingRead(pid, "python3", 1.25) for pid in range(5)),
        consumers=("pod default/llama-6d9f", "/mnt/llama"),
        last_error="registry.example: sha256:0123: the answer ended early; it is asked again; " * 3,
        state="quarantined",
    )
    text = show.status(Report(NODE, (VOLUME, busy)), 80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:4] == [
        "VOLUME",
        "  STATE       SIZE      PRESENT VERIFIED RATE         LEFT         WAITING",
        "registry.example/models/llama-3-8b:v1",
        "  lazy        15.0 GiB  46 %    6 %      1.20 GiB/s   6.7 s        0",
    ]
    assert "python3 (0) 1.2 s, python3 (1) 1.2 s, python3 (2) 1.2 s and 2 more" in " ".join(text.split())
    for said in (
        "pod default/llama-6d9f, /mnt/llama",
        "up 3 h 3 min",
        "lazy (pre-content",
        "12.0 GiB used",
        "40.0 GiB of 100 GiB free",
        "prefetch on",
    ):
        assert said in " ".join(text.split())


def test_without_volumes_and_without_a_width() -> None:
    assert show.status(Report(NODE, ()), None).startswith("no volumes\n")
    long = replace(VOLUME, reference="host/" + "x" * 200)
    assert long.reference in show.status(Report(NODE, (long,)), None)
    assert max(map(len, show.status(Report(NODE, (long,)), 80).splitlines())) <= 80


@given(st.text())
def test_nothing_reaches_the_terminal_that_it_acts_on(text: str) -> None:
    volume = replace(VOLUME, reference=text, consumers=(text,), last_error=text, waiting=(WaitingRead(1, text, 0),))
    shown = show.status(Report(replace(NODE, last_error=text), (volume,)), 80)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert show.one_line(text).isprintable()


def test_a_step() -> None:
    progress = Progress("host/m:v1", 2 << 30, 1 << 30, 1 << 29, 0, 3 << 20, done=False)
    assert show.step(progress) == "host/m:v1: 50 % present, 25 % durable, 0 % verified of 2.00 GiB, 3.00 MiB/s"
    assert show.step(replace(progress, done=True)).endswith("done")
