"""The nouns of failure that cross from one room to another.

Each says whose fault it is by its class, *what* and *why* by its message, and *what next* by `remedy`. Doors (gRPC, HTTP,
errno, exit status) translate classes by a total table of their own; nothing here knows a code.
"""

from __future__ import annotations

import re

#: What differs from one range, or from one moment, to the next. (A digest may end in digits.)
_COUNTS = re.compile(
    r"bytes [0-9]+(-[0-9]+)?|(?<![0-9a-f])[0-9]+( of [0-9]+)? bytes|[0-9.]+ s\b|segment [0-9]+|[0-9.]+ (?:[KMGTP]i)?B\b"
)


class Failure(Exception):
    """Something a person asked for did not happen.

    `message` names the thing and the cause in one line; `remedy` is the next step, a sentence or empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    @property
    def cause(self) -> str:
        """The same for every range, count and moment of which it is said: so that hundreds of one cause are told as one."""
        return f"{type(self).__name__}: {without_counts(self.message)}"


def without_counts(text: str) -> str:
    """What is left when ranges, counts, amounts and times are taken out."""
    return _COUNTS.sub("", text)


class InvalidInput(Failure):
    """The caller's: a malformed reference, key, filter or setting."""


class NotFound(Failure):
    """The thing named does not exist, here or upstream."""


class AlreadyExists(Failure):
    """The name is taken."""


class Refused(Failure):
    """The request is well formed but the state of things forbids it."""


class InUse(Refused):
    """Somebody still uses it; the message names who."""


class NotAModel(Failure):
    """A well-formed document that is no model we can mount. The producer's."""


class Malformed(Failure):
    """A document or byte stream that does not hold what it promises. The registry's or the producer's."""


class Mismatch(Malformed):
    """Bytes whose digest is not the one asked for."""


class Unauthorized(Failure):
    """The registry wants credentials, or refused those it was given (HTTP 401)."""


class Forbidden(Failure):
    """The registry knows who asks and says no (HTTP 403)."""


class Unreachable(Failure):
    """The registry could not be asked, or answered with its own trouble (refused, timed out, 429, 5xx).

    `wait`: for how many seconds more it is to be left alone, 0 where it says nothing of that.
    """

    def __init__(self, message: str, remedy: str = "", *, wait: float = 0.0) -> None:
        super().__init__(message, remedy)
        self.wait = wait


class NotYet(Failure):
    """The answer is not here in the time allowed; the work goes on."""


class Exhausted(Failure):
    """A bound of ours, or the disk, is reached."""


class Failing(Failure):
    """The store can no longer promise what it wrote."""


class Unsupported(Failure):
    """The machine lacks what this needs; the remedy names what would mend it."""
