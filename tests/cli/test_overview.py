"""The report that `status` prints: quiet where all is well, and where it is not it says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.cli.overview import overview
from modelvold.lending.report import NodeReport, Report, VolumeReport, WaitingRead

NODE = NodeReport(
    version="0.1.0",
    backend="lazy",
    backend_reason="pre-content events seen working",
    store="/var/lib/modelvold",
    store_state="ok",
    store_used=12 << 30,
    disk_total=100 << 30,
    disk_free=40 << 30,
    memory=120 << 20,
    uptime=11000.0,
    facade="127.0.0.1:7878",
    prefetch=True,
    events=1234,
    reads_denied=0,
    last_error="",
    room=30 << 30,
)
VOLUME = VolumeReport(
    id="v1",
    reference="registry.example/models/llama-3-8b:v1",
    manifest="sha256:0",
    state="lazy",
    backend="lazy",
    path="/run/v1",
    size=15 << 30,
    present=7 << 30,
    durable=7 << 30,
    verified=1 << 30,
    segments=960,
    segments_complete=448,
    rate=1.2 * (1 << 30),
    eta=6.7,
    waiting=(),
    consumers=(),
    last_error="",
    used=0.0,
)
FAILING = "failing: store /var/lib/modelvold is failing: fdatasync of content/x: Input/output error"
WRONG = {
    "POISONED": (replace(VOLUME, poisoned=("python3 (12)", "vllm (13)")), NODE, "restart what is named here"),
    "quarantined": (replace(VOLUME, state="quarantined"), NODE, "`modelvold rm` it here, and pull it again"),
    "streaming": (replace(VOLUME, state="streaming"), NODE, "make room: `modelvold gc`"),
    "FAILING": (VOLUME, replace(NODE, store_state=FAILING), "then restart modelvold"),
    "NOT DURABLE": (VOLUME, replace(NODE, not_durable="ext2 has no journal"), "`modelvold doctor` says"),
    "3 segments did not": (VOLUME, replace(NODE, wrong_segments=3), "`modelvold verify --repair`"),
}


def _said(volume: VolumeReport = VOLUME, node: NodeReport = NODE) -> str:
    return " ".join(overview(Report(node, (volume,)), 80).split())


def test_when_all_is_well_nothing_is_said_of_it() -> None:
    assert overview(Report(NODE, (VOLUME,)), 80).splitlines() == [
        "VOLUME",
        "  STATE       SIZE      PRESENT VERIFIED RATE         LEFT         WAITING",
        "registry.example/models/llama-3-8b:v1",
        "  lazy        15.0 GiB  46 %    6 %      1.20 GiB/s   6.7 s        0",
        "",
        "  node:       modelvold 0.1.0, up 3 h 3 min, 120 MiB of memory",
        "  backend:    lazy (pre-content events seen working)",
        "  store:      /var/lib/modelvold: ok; 12.0 GiB used, 40.0 GiB of 100 GiB free",
        "  room:       30.0 GiB before anything is evicted",
        "  reads:      1234 events answered, 0 reads denied, prefetch on",
        "  façade:     127.0.0.1:7878",
    ]


def test_what_there_is_to_say_of_a_volume() -> None:
    busy = replace(
        VOLUME,
        waiting=tuple(WaitingRead(pid, "python3", 1.25) for pid in range(5)),
        consumers=("pod default/llama-6d9f", "/mnt/llama"),
        last_error="registry.example: sha256:0123: the answer ended early; it is asked again; " * 3,
    )
    assert "waiting: python3 (0) 1.2 s, python3 (1) 1.2 s, python3 (2) 1.2 s and 2 more" in _said(busy)
    assert "used by: pod default/llama-6d9f, /mnt/llama" in _said(busy)
    assert "last error: registry.example" in _said(busy)
    idle = replace(VOLUME, used=200_000.0, pinned=True)
    assert "last used: 2 d 7 h ago pinned: neither evicted nor forgotten" in _said(idle)
    assert "last used" not in _said(replace(idle, consumers=("snapshot 7",)))
    assert "last used" not in _said(replace(idle, used=-1.0))


def test_room_and_what_bounds_it() -> None:
    bounded = replace(NODE, quota=200 << 30, reserve=10 << 30, evicted=3 << 30)
    said = "room: 30.0 GiB before anything is evicted, quota 200 GiB, 10.0 GiB left to others, 3.00 GiB evicted since"
    assert said in _said(node=bounded)
    assert "room: 0 B before anything is evicted, 2.00 GiB over the bounds" in _said(node=replace(NODE, room=-2 << 30))
    assert "scrub: all that is here was read again in the last 2 d 7 h" in _said(node=replace(NODE, scrubbed=200_000.0))


def test_what_needs_modelvold_to_start_again() -> None:
    used = replace(NODE, snapshots=14, snapshots_in_use=5)
    assert "snapshots: 14, 5 of them of containers and image volumes, which go on without modelvold" in _said(node=used)
    assert "snapshots: 9 reads:" in _said(node=replace(NODE, snapshots=9))


@pytest.mark.parametrize("word", WRONG)
def test_what_is_wrong_is_said_with_what_to_do_at_the_end(word: str) -> None:
    volume, node, mend = WRONG[word]
    before, heading, after = overview(Report(node, (VOLUME, volume)), 80).partition("\nATTENTION\n")
    assert heading
    assert word in before + after
    assert mend in " ".join(after.split())
    assert after.count("mend: ") == 1
    for line in before.splitlines():  # the row of a volume and the line of the store say so too
        assert "ATTENTION" not in line or "POISONED" in line
    screen = overview(Report(node, (VOLUME, volume)), 80, urgent_first=True)
    assert screen.startswith(f"ATTENTION\n{after}\n\nVOLUME\n")


def test_every_program_with_wrong_bytes_is_named() -> None:
    programs = tuple(f"worker ({pid})" for pid in range(40))
    said = _said(replace(VOLUME, poisoned=programs))
    assert all(program in said for program in programs)
    assert "worker (1) has wrong bytes of it in memory" in _said(replace(VOLUME, poisoned=programs[1:2]))


def test_the_worst_comes_first() -> None:
    volumes = tuple(volume for volume, _, _ in WRONG.values())
    node = replace(NODE, store_state=FAILING, not_durable="it is a tmpfs", wrong_segments=1)
    after = overview(Report(node, volumes), None).partition("\nATTENTION\n")[2]
    order = [
        "in memory",
        "not those of its digest",
        "is failing",
        "is not durable",
        "1 segment did not hold",
        "does not fit",
    ]
    places = [after.index(word) for word in order]
    assert places == sorted(places)
    assert all(line.startswith(("  ", "    mend: ")) for line in after.splitlines())


def test_without_volumes_and_without_a_width() -> None:
    assert overview(Report(NODE, ()), None).startswith("no volumes\n")
    long = replace(VOLUME, reference="host/" + "x" * 200)
    assert long.reference in overview(Report(NODE, (long,)), None)


@given(
    st.text(),
    st.sampled_from(["lazy", "streaming", "quarantined"]),
    st.integers(0, 1 << 62),
    st.integers(-(1 << 62), 1 << 62),
    st.floats(-1, 1e10),
    st.booleans(),
)
def test_at_80_columns_and_nothing_reaches_the_terminal_that_it_acts_on(
    text: str, state: str, count: int, room: int, seconds: float, is_so: bool
) -> None:
    volume = replace(
        VOLUME,
        reference=text,
        state=state,
        consumers=(text,) if is_so else (),
        last_error=text,
        waiting=(WaitingRead(1, text, seconds),),
        pinned=is_so,
        used=seconds,
        poisoned=(text, text),
    )
    node = replace(
        NODE,
        store=text,
        store_state="ok" if is_so else f"failing: {text}",
        last_error=text,
        quota=count,
        reserve=count,
        room=room,
        evicted=count,
        not_durable=text,
        scrubbed=seconds,
        wrong_segments=count,
    )
    lines = overview(Report(node, (volume,)), 80).split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= 80
