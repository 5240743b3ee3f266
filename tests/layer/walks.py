"""What a test asks of a walk. (`tars` is without pytest, for the fuzzer.)"""

from __future__ import annotations

import pytest
from modelvold.errors import Malformed
from modelvold.layer.toc import Entry, Toc

from tests.layer.tars import END, whole


def only(*parts: bytes) -> Entry:
    """The one entry of an archive made of these."""
    (entry,) = whole(b"".join(parts) + END).entries
    return entry


def outcome(archive: bytes) -> Toc | str:
    """What it holds, or the text of what is wrong with it."""
    try:
        return whole(archive)
    except Malformed as error:
        return error.message


def refused(*parts: bytes, saying: str) -> Malformed:
    with pytest.raises(Malformed, match=saying) as caught:
        whole(b"".join(parts) + END)
    assert caught.value.remedy == "ask the producer to repack the model"
    assert len(caught.value.message) < 900
    return caught.value
