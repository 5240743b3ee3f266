from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import InvalidInput
from modelvold.snapshot.mapping import LABEL_GIDS, LABEL_UIDS, IdMap, id_map


def test_no_labels_shift_nothing() -> None:
    assert id_map({"containerd.io/snapshot.ref": "x"}) is None


def test_root_is_who_the_host_says() -> None:
    found = id_map({LABEL_UIDS: "1:7:1,0:100000:65536", LABEL_GIDS: "0:200000:10"})
    assert found == IdMap("1:7:1,0:100000:65536", "0:200000:10", (100000, 200000))
    assert found.options == ("uidmap=1:7:1,0:100000:65536", "gidmap=0:200000:10")


@pytest.mark.parametrize(
    ("uids", "gids", "why"),
    [
        ("0:1:1", None, "gidmapping='': not of the form"),
        (None, "0:1:1", "uidmapping='': not of the form"),
        ("0:1", "0:1:1", "not of the form"),
        ("0:1:1,", "0:1:1", "not of the form"),
        ("0:1:1 ", "0:1:1", "not of the form"),
        ("0:1:1,suid", "0:1:1", "not of the form"),
        (",".join(["0:1:1"] * 341), "0:1:1", "not of the form"),
        ("0:1:0", "0:1:1", "0:1:0 is no range"),
        ("0:4294967295:2", "0:1:1", "is no range"),
        ("1:1:1", "0:1:1", "does not say who is root"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(uids: str | None, gids: str | None, why: str) -> None:
    labels = {LABEL_UIDS: uids, LABEL_GIDS: gids}
    with pytest.raises(InvalidInput, match=why):
        id_map({name: text for name, text in labels.items() if text is not None})


@given(st.text(max_size=40))
def test_nothing_but_ranges_becomes_an_option(text: str) -> None:
    try:
        found = id_map({LABEL_UIDS: text, LABEL_GIDS: text})
    except InvalidInput:
        return
    assert found is not None
    assert set(found.uids) <= set("0123456789:,")
