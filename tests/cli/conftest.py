from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from modelvold.rpc.control import control_door
from modelvold.rpc.server import Server

from tests.cli.behind import InMemory


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "run" / "m.sock"


@pytest.fixture
def operator(address: Path) -> Iterator[InMemory]:
    behind = InMemory()
    with Server(address, [control_door(behind)]):
        yield behind
