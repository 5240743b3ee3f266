"""What the verbs that ask the daemon share: `--address`, the client, printing of values as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelvold.rpc import places

if TYPE_CHECKING:
    from modelvold.rpc.control import ControlClient

_F = TypeVar("_F", bound=Callable[..., Any])


def address_option(verb: _F) -> _F:
    return click.option(
        "--address",
        type=click.Path(path_type=Path),
        metavar="SOCK",
        help=f"The daemon's socket [default: $MODELVOLD_ADDRESS, else {places.DEFAULT_RUN}/{places.SOCKET}, or one's own].",
    )(verb)


def client(address: Path | None) -> ControlClient:
    from modelvold.rpc.control import ControlClient

    return ControlClient(places.client_address(address))


def as_json(value: Any) -> str:
    """A report or one of its parts, on one line."""
    return json.dumps(asdict(value), ensure_ascii=False)
