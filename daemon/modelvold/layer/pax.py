"""pax extended headers: records of a keyword and a value (POSIX.1-2017, `pax`, "pax Extended Header").

Values stay bytes. Names are UTF-8 or, with `hdrcharset=BINARY`, whatever they were on the packer's machine; both are
read as the bytes they are, so that record need not be obeyed.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelvold.layer.header import Unreadable
from modelvold.oci.file_metadata import LATEST

_MOST_DIGITS = 20


def records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header, in order: `LENGTH KEYWORD=VALUE\\n`, LENGTH in bytes and of all of it.

    Raises Unreadable where they are not that from the first byte to the last.
    """
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + _MOST_DIGITS)
        digits = content[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else 0
        equals = content.find(b"=", space + 1, end)
        if equals <= space + 1 or end > len(content) or content[end - 1] != ord("\n"):
            raise Unreadable(f"its extended header is broken: {content[at : at + 60]!r}")
        yield content[space + 1 : equals], content[equals + 1 : end - 1]
        at = end


def number(value: bytes, what: str) -> int:
    """A decimal number. Raises Unreadable for anything else, signs included."""
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise Unreadable(f"its {what} is {value[:60]!r}, which is no number that it could have")
    return int(value)


def nanoseconds(value: bytes) -> int:
    """A time, in seconds since 1970 with a fraction of any length, in whole nanoseconds within [0, LATEST].

    Raises Unreadable for what is no time.
    """
    sign, digits = (b"-", value[1:]) if value.startswith(b"-") else (b"", value)
    whole, _, fraction = digits.partition(b".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()):
        raise Unreadable(f"its time is {value[:60]!r}, which is none")
    if sign:
        return 0
    # Twenty digits of seconds are beyond the latest time already, whatever follows them.
    seconds = int(whole.lstrip(b"0")[:_MOST_DIGITS] or b"0")
    return min(LATEST, seconds * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))
