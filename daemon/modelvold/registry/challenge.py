"""`WWW-Authenticate`: what a registry wants to know before it answers (RFC 9110 §11.6.1, distribution-spec token auth).
Pure.

One header may hold several challenges, and several headers one each. What cannot be read is left out, never an error: a
registry that says more than we understand may still say `Basic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (the grammar's word, no secret)
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME = re.compile(rf"({_TOKEN})(?=\s|,|$)(?!\s*=)")
_LONGEST_HEADER = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """`scheme` in lower case. `realm`, `service` and `scope` are empty where the registry gave none."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Every challenge in the values of all WWW-Authenticate headers, in their order."""
    return tuple(challenge for header in headers for challenge in _parse_one(header[:_LONGEST_HEADER]))


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The strongest we can answer: Bearer with a realm, else Basic, else none."""
    given = tuple(challenges)
    bearer = next((one for one in given if one.scheme == "bearer" and one.realm), None)
    return bearer or next((one for one in given if one.scheme == "basic"), None)


def pull_scope(challenge: Challenge, repository: str) -> str:
    """The scope to ask a token for: what the registry names, cut down to pulling, else `repository:<repository>:pull`.

    The registry's own wording matters where a mirror keeps the repository under another path.
    """
    form = re.fullmatch(r"repository:([^\s]+):[a-z,*]+", challenge.scope)
    if form:
        return f"repository:{form[1]}:pull"
    return challenge.scope or f"repository:{repository}:pull"


def _parse_one(header: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    scheme, parameters, at = "", dict[str, str](), 0
    while at < len(header):
        if header[at] in " \t,":
            at += 1
        elif found := _SCHEME.match(header, at):
            if scheme:
                challenges.append(_challenge(scheme, parameters))
            scheme, parameters, at = found[1], {}, found.end()
        elif found := _PARAMETER.match(header, at):
            quoted = found[2]
            text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else found[3]
            parameters.setdefault(found[1].lower(), text)
            at = found.end()
        else:
            break
    if scheme:
        challenges.append(_challenge(scheme, parameters))
    return challenges


def _challenge(scheme: str, parameters: dict[str, str]) -> Challenge:
    named = {key: parameters.get(key, "") for key in ("realm", "service", "scope")}
    return Challenge(scheme.lower(), **named)
