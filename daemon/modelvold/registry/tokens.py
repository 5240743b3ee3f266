"""Bearer tokens: asked for once, shared by all threads, renewed before they end or when a registry no longer takes
them.

Protocol: distribution-spec "Token Authentication", a GET to the realm with `service` and `scope`, with Basic
credentials or none.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from modelvold.errors import Malformed
from modelvold.registry.credentials import BasicCredentials
from modelvold.registry.deadline import Deadline

#: What the specification says to assume where a server names no time.
_LIFE_SECONDS = 60.0
#: A token is replaced when this part of its life is over, so that none ends on the way.
_USABLE_PART = 0.8
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is for and to whom it is given. Equal grants share a token."""

    realm: str
    service: str
    scope: str
    credentials: BasicCredentials | None


@dataclass(frozen=True, slots=True)
class Token:
    """`life` in seconds from when it was asked for."""

    text: str = field(repr=False)
    life: float


class _Said(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class _Place:
    """One grant's token. Its lock is held while one thread asks, so that the others wait for what it gets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.text = ""
        self.until = 0.0


class Tokens:
    """Thread-safe."""

    def __init__(self) -> None:
        self._places: OrderedDict[Grant, _Place] = OrderedDict()
        self._lock = threading.Lock()  # guards _places, not what is in them

    def get(self, grant: Grant, ask: Callable[[], Token], deadline: Deadline) -> str:
        """The token for `grant`, from `ask` where none is good. What `ask` raises is raised; TimeoutError if others
        ask too long.
        """
        place = self._place(grant)
        if not place.lock.acquire(timeout=deadline.left()):
            raise TimeoutError
        try:
            if time.monotonic() >= place.until:
                asked_at = time.monotonic()
                token = ask()
                place.text, place.until = token.text, asked_at + token.life * _USABLE_PART
            return place.text
        finally:
            place.lock.release()

    def drop(self, grant: Grant, text: str) -> None:
        """The registry refused `text`. Nothing happens if another thread has renewed it already."""
        place = self._place(grant)
        with place.lock:
            if place.text == text:
                place.until = 0.0

    def _place(self, grant: Grant) -> _Place:
        with self._lock:
            place = self._places.setdefault(grant, _Place())
            self._places.move_to_end(grant)
            while len(self._places) > _MOST:
                self._places.popitem(last=False)
            return place


def parse(document: bytes, what: str) -> Token:
    """A token server's answer. Raises Malformed, without quoting any of it."""
    remedy = "the registry names a token server that is none"
    try:
        said = msgspec.json.decode(document, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{what}: its token server does not answer in JSON", remedy) from error
    text = said.token or said.access_token
    if not text or not text.isascii() or not text.isprintable():
        raise Malformed(f"{what}: its token server gives no token", remedy)
    return Token(text, said.expires_in if said.expires_in and said.expires_in > 0 else _LIFE_SECONDS)
