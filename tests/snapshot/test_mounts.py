from __future__ import annotations

from pathlib import Path

import pytest
from modelvold.snapshot.mapping import IdMap
from modelvold.snapshot.mounts import Layout, Mount, mounts
from modelvold.snapshot.record import Info, Kind, Layer, Record, Usage

LAYOUT = Layout(Path("/s"), ("index=off",))
VOLUMES = {"m": Path("/v/m")}
READ_ONLY = ("ro", "rbind", "nosuid", "nodev")
IMAGE_VOLUME = "k8s.io/43//run/containerd/io.containerd.grpc.v1.cri/image-volumes/sandbox/abc"


def record(kind: Kind, *parents: Layer, key: str = "k8s.io/1/app") -> Record:
    return Record(Info(key, "p" if parents else "", kind, {}, 0, 0), Layer(9), Usage(), parents)


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (record(Kind.ACTIVE), Mount("bind", "/s/9/fs", ("rw", "rbind"))),
        (record(Kind.VIEW), Mount("bind", "/s/9/fs", ("ro", "rbind"))),
        (record(Kind.VIEW, Layer(1)), Mount("bind", "/s/1/fs", ("ro", "rbind"))),
        (
            record(Kind.ACTIVE, Layer(2), Layer(1)),
            Mount(
                "overlay",
                "overlay",
                ("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs", "index=off"),
            ),
        ),
        (
            record(Kind.VIEW, Layer(2), Layer(1)),
            Mount("overlay", "overlay", ("lowerdir=/s/2/fs:/s/1/fs", "index=off")),
        ),
        (record(Kind.VIEW, Layer(1, "m")), Mount("bind", "/v/m", READ_ONLY)),
        (record(Kind.ACTIVE, Layer(1, "m"), key=IMAGE_VOLUME), Mount("bind", "/v/m", READ_ONLY)),
        (
            record(Kind.ACTIVE, Layer(1, "m")),
            Mount("overlay", "overlay", ("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/v/m", "index=off")),
        ),
        (
            record(Kind.VIEW, Layer(3), Layer(2, "m"), Layer(1)),
            Mount("overlay", "overlay", ("lowerdir=/s/3/fs:/v/m", "index=off")),
        ),
        (
            record(Kind.ACTIVE, Layer(1), key=IMAGE_VOLUME),
            Mount("overlay", "overlay", ("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs", "index=off")),
        ),
    ],
)
def test_mounts(snapshot: Record, expected: Mount) -> None:
    assert mounts(snapshot, LAYOUT, VOLUMES) == (expected,)


SHIFTED = IdMap("0:100000:65536", "0:100000:65536", (100000, 100000))
SHIFT = SHIFTED.options
UPPER = ("workdir=/s/9/work", "upperdir=/s/9/fs")


@pytest.mark.parametrize(
    ("snapshot", "options"),
    [
        (record(Kind.ACTIVE, Layer(1)), (*UPPER, "lowerdir=/s/1/fs", "index=off", *SHIFT)),
        (record(Kind.VIEW, Layer(1)), ("lowerdir=/s/1/fs:/s/9/fs", "index=off", *SHIFT)),
        (record(Kind.VIEW, Layer(2), Layer(1)), ("lowerdir=/s/2/fs:/s/1/fs", "index=off", *SHIFT)),
        (record(Kind.ACTIVE, Layer(1, "m")), (*UPPER, "lowerdir=/v/m/.", "index=off", *SHIFT)),
        (record(Kind.ACTIVE, Layer(1), key=IMAGE_VOLUME), (*UPPER, "lowerdir=/s/1/fs", "index=off", *SHIFT)),
    ],
)
def test_owners_are_shifted_by_an_overlay(snapshot: Record, options: tuple[str, ...]) -> None:
    assert mounts(snapshot, LAYOUT, VOLUMES, SHIFTED) == (Mount("overlay", "overlay", options),)


@pytest.mark.parametrize(
    "snapshot", [record(Kind.ACTIVE, Layer(1, "m"), key=IMAGE_VOLUME), record(Kind.VIEW, Layer(1, "m"))]
)
def test_a_bind_that_is_to_be_shifted_is_not_called_read_only(snapshot: Record) -> None:
    options = ("rbind", "nosuid", "nodev", *SHIFT)
    assert mounts(snapshot, LAYOUT, VOLUMES, SHIFTED) == (Mount("bind", "/v/m", options),)


def test_there_is_nothing_to_shift_in_an_empty_one() -> None:
    assert mounts(record(Kind.ACTIVE), LAYOUT, VOLUMES, SHIFTED) == (Mount("bind", "/s/9/fs", ("rw", "rbind")),)


def test_a_key_that_only_speaks_of_image_volumes_is_none() -> None:
    snapshot = record(Kind.ACTIVE, Layer(1, "m"), key="k8s.io/1/my-image-volumes")
    assert mounts(snapshot, LAYOUT, VOLUMES)[0].type == "overlay"
