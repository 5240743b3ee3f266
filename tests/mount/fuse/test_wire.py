"""What daemon and process say to each other: whole however it is cut, and anything else refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.errors import Malformed
from modelvold.mount.fuse import wire
from modelvold.mount.fuse.wire import (
    Answer,
    Ask,
    Done,
    Drop,
    Hello,
    Hide,
    Message,
    Ping,
    Serve,
    Show,
    Shown,
    Unpacking,
    Welcome,
    Withdraw,
)

_NUMBER = st.integers(0, 2**63 - 1)
_TEXT = st.text(st.characters(), max_size=40) | st.just("models/\udcff.bin")
_COUNT = st.integers(0, 1 << 20)
_MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, _COUNT, st.floats(0, 3600)),
    st.builds(Welcome, _COUNT, _COUNT, _TEXT, st.lists(_TEXT, max_size=4).map(tuple)),
    st.builds(Show, _COUNT, _TEXT, _TEXT, st.lists(st.tuples(_TEXT, _COUNT), max_size=4).map(tuple)),
    st.builds(Hide, _COUNT, _TEXT),
    st.builds(Ping, _COUNT),
    st.builds(Withdraw, _NUMBER),
    st.builds(Done, _COUNT, _COUNT, _TEXT),
    st.builds(Drop, _TEXT, st.lists(st.tuples(_TEXT, _NUMBER, _NUMBER), max_size=4).map(tuple)),
    st.builds(Ask, _NUMBER, _NUMBER, _NUMBER, st.integers(0, 2**32 - 1)),
    st.builds(Answer, _NUMBER, _NUMBER, st.booleans()),
    st.builds(Shown, st.lists(st.tuples(_NUMBER, _NUMBER), max_size=8).map(tuple)),
    st.just(Serve()),
)


@given(messages=st.lists(_MESSAGES, max_size=8), piece=st.integers(1, 200))
def test_what_is_said_is_heard_in_order_however_it_is_cut(messages: list[Message], piece: int) -> None:
    data = b"".join(map(wire.packed, messages))
    unpacking = Unpacking()
    heard = [message for at in range(0, len(data), piece) for message in unpacking.feed(data[at : at + piece])]
    assert heard == messages


@given(data=st.binary(max_size=300))
def test_anything_else_is_malformed_or_waited_for(data: bytes) -> None:
    with suppress(Malformed):
        list(Unpacking().feed(data))


def test_a_length_beyond_any_message_is_refused_before_it_comes() -> None:
    with pytest.raises(Malformed, match="a message of 4294967295 bytes"):
        list(Unpacking().feed(b"\xff\xff\xff\xff\x01"))


def test_what_segments_show_takes_as_many_messages_as_it_needs() -> None:
    pairs = [(inode, wire.ALL) for inode in range(200_000)]
    messages = list(wire.shown(pairs))
    assert len(messages) > 1
    assert [pair for message in messages for pair in message.pairs] == pairs
    assert all(len(wire.packed(message)) < wire.LARGEST for message in messages)
