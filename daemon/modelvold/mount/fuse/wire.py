"""What the daemon and the process that serves FUSE say to each other, over a Unix stream socket. Pure.

A message is its length, its kind, and a body: JSON where it is seldom said, packed numbers where it is often. The process listens, one
daemon at a time is its client.

    daemon ▶ HELLO                          process ▶ WELCOME   what it is, and what it shows
    daemon ▶ SHOW, HIDE, PING (numbered)    process ▶ DONE      each is answered
    daemon ▶ DROP                           pages of volumes' files that are wrong: seen to in the background
    daemon ▶ SHOWN                          how far segments may be read without asking
    daemon ▶ SERVE                          all has been told: from now on questions are answered
    process ▶ ASK                           a read waits
    daemon ▶ ANSWER
    process ▶ WITHDRAW                      its reader was killed: nobody waits under that number any more
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from modelvold.errors import Malformed

#: Of these messages: a daemon of another leaves the process to its readers and starts its own.
VERSION = 1
#: Of one body. A volume's message names its contents, 65,535 at most, each with its folder.
LARGEST = 64 << 20
#: A segment may be read without asking whatever its length.
ALL = (1 << 63) - 1

_HEAD = struct.Struct("<IB")
_SHOWN = struct.Struct("<QQ")
_ASK = struct.Struct("<QQQI")
_ANSWER = struct.Struct("<QQB")
_NUMBER = struct.Struct("<Q")
#: Pairs in one SHOWN.
_MOST_PAIRS = 1 << 16


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    SHOW = 3
    HIDE = 4
    DONE = 5
    DROP = 6
    SHOWN = 7
    SERVE = 8
    ASK = 9
    ANSWER = 10
    PING = 11
    WITHDRAW = 12


@dataclass(frozen=True, slots=True)
class Hello:
    """`deadline`: seconds that a read waits while there is no daemon."""

    version: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Welcome:
    """`device` is the mount's, `major:minor`; `volumes` are those shown, by id."""

    version: int
    pid: int
    device: str
    volumes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Show:
    """`folders` are its contents' in order, each with how many segments lie in it."""

    serial: int
    volume: str
    image: str
    folders: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Hide:
    serial: int
    volume: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Whether it is alive."""

    serial: int


@dataclass(frozen=True, slots=True)
class Done:
    """`code` is an errno, 0 where it went well."""

    serial: int
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Drop:
    """`pieces` of the volume's files: path, and the range [start, end) of bytes."""

    volume: str
    pieces: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """A read of `pid` waits, under `number`, until the segment `inode` is `need` bytes long."""

    number: int
    inode: int
    need: int
    pid: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`shown`: so many bytes of that segment may be read, now and without asking again."""

    number: int
    shown: int
    is_allowed: bool


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Nobody waits for an answer to that question any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Shown:
    """How far each segment, by inode, may be read without asking: 0 for not at all, ALL for ever."""

    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Serve:
    pass


Message = Hello | Welcome | Show | Hide | Ping | Done | Drop | Ask | Answer | Withdraw | Shown | Serve


def packed(message: Message) -> bytes:
    """Whole, but a `Shown` with more pairs than go into one message: see `shown`."""
    match message:
        case Ask(number, inode, need, pid):
            kind, body = Kind.ASK, _ASK.pack(number, inode, need, pid)
        case Answer(number, shown_, is_allowed):
            kind, body = Kind.ANSWER, _ANSWER.pack(number, shown_, is_allowed)
        case Withdraw(number):
            kind, body = Kind.WITHDRAW, _NUMBER.pack(number)
        case Shown(pairs):
            kind, body = Kind.SHOWN, b"".join(_SHOWN.pack(*pair) for pair in pairs)
        case _:
            kind, body = _KINDS[type(message)], json.dumps(asdict(message)).encode()
    return _HEAD.pack(len(body), kind) + body


def shown(pairs: Sequence[tuple[int, int]]) -> Iterator[Shown]:
    """As many messages as it takes."""
    for first in range(0, len(pairs), _MOST_PAIRS):
        yield Shown(tuple(pairs[first : first + _MOST_PAIRS]))


class Unpacking:
    """The other side of a stream: bytes in as they come, messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now. Raises Malformed for what is none; the stream is of no use then."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._buffer, at)
            if length > LARGEST:
                raise _malformed(f"a message of {length} bytes")
            end = at + _HEAD.size + length
            if end > len(self._buffer):
                break
            yield _unpacked(kind, bytes(self._buffer[at + _HEAD.size : end]))
            at = end
        del self._buffer[:at]


def _unpacked(kind: int, body: bytes) -> Message:
    try:
        match kind:
            case Kind.ASK:
                return Ask(*_ASK.unpack(body))
            case Kind.ANSWER:
                number, shown_, is_allowed = _ANSWER.unpack(body)
                return Answer(number, shown_, bool(is_allowed))
            case Kind.WITHDRAW:
                return Withdraw(*_NUMBER.unpack(body))
            case Kind.SHOWN:
                return Shown(tuple(_SHOWN.iter_unpack(body)))
            case _:
                return _PARSERS[Kind(kind)](json.loads(body))
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _malformed(f"a message of kind {kind} that is none: {error}") from error


def folders_of(folders: Iterable[tuple[Path, int]]) -> tuple[tuple[str, int], ...]:
    """As in `Show`."""
    return tuple((str(folder), count) for folder, count in folders)


_KINDS: dict[type, Kind] = {
    Hello: Kind.HELLO,
    Welcome: Kind.WELCOME,
    Show: Kind.SHOW,
    Hide: Kind.HIDE,
    Ping: Kind.PING,
    Done: Kind.DONE,
    Drop: Kind.DROP,
    Serve: Kind.SERVE,
}


_PARSERS: dict[Kind, Callable[[Mapping[str, Any]], Message]] = {
    Kind.HELLO: lambda of: Hello(int(of["version"]), float(of["deadline"])),
    Kind.WELCOME: lambda of: Welcome(
        int(of["version"]), int(of["pid"]), str(of["device"]), tuple(str(volume) for volume in of["volumes"])
    ),
    Kind.SHOW: lambda of: Show(
        int(of["serial"]),
        str(of["volume"]),
        str(of["image"]),
        tuple((str(folder), int(count)) for folder, count in of["folders"]),
    ),
    Kind.HIDE: lambda of: Hide(int(of["serial"]), str(of["volume"])),
    Kind.PING: lambda of: Ping(int(of["serial"])),
    Kind.DONE: lambda of: Done(int(of["serial"]), int(of["code"]), str(of["message"])),
    Kind.DROP: lambda of: Drop(
        str(of["volume"]), tuple((str(path), int(start), int(end)) for path, start, end in of["pieces"])
    ),
    Kind.SERVE: lambda _: Serve(),
}


def _malformed(what: str) -> Malformed:
    return Malformed(f"the process that serves FUSE and the daemon: {what}", "restart modelvold")
