"""`model.safetensors.index.json` and its like: which file has which tensor, as `{"weight_map": {tensor: file}}`.

Anybody may have written it, and only the files' names are wanted: no table of its hundred thousands of tensors is built, and what
is not understood at once is not understood.
"""

from __future__ import annotations

import re

import msgspec

#: Bytes. That of a model of 10^12 parameters in 200,000 tensors has 20 MB.
LONGEST = 32 << 20
#: Names of files.
MOST_FILES = 16_384
#: One tensor with its file, and whether another follows. Names with escapes are nobody's.
_PAIR = re.compile(rb'\s*+"[^"\\]*+"\s*+:\s*+"([^"\\]*+)"\s*+([,}])')


class _Index(msgspec.Struct):
    weight_map: msgspec.Raw


def files_of(document: bytes) -> frozenset[bytes]:
    """The files it names, relative to its folder; none where it is no such document, or names what is not below its folder."""
    if len(document) > LONGEST:
        return frozenset()
    try:
        pairs = memoryview(msgspec.json.decode(document, type=_Index).weight_map)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()
    return _values(pairs)


def _values(pairs: memoryview) -> frozenset[bytes]:
    """The values of a JSON object of texts."""
    found: set[bytes] = set()
    at = 1
    while pair := _PAIR.match(pairs, at):
        found.add(pair[1])
        at = pair.end()
        if len(found) > MOST_FILES:
            break
        if pair[2] == b"}":
            return frozenset(found) if all(map(_is_plain, found)) else frozenset()
    return frozenset()


def _is_plain(name: bytes) -> bool:
    names = name.split(b"/")
    return all(names) and b"\0" not in name and b"." not in names and b".." not in names
