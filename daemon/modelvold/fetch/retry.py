"""Whether and when to ask again, for every noun of failure. Pure.

A demand whose failure may pass is asked for again until nobody waits any more: for how long that is the gate's deadline says, and
then it releases the demand. A demand whose failure will not pass fails at once, and so do the next ones until the gate's cool-down
ends; after that one more reader finds out whether it was mended. A prefetch has nobody who waits: it goes on through what passes by
itself, and ends with what a person must mend, until a demand of the same content has come through.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelvold import errors
from modelvold.errors import Failure, Unreachable


@dataclass(frozen=True, slots=True)
class Again:
    """Seconds before asking again: `first`, then twice as many each time up to `longest`; for a prefetch up to `unhurried`, 0 where
    it ends instead."""

    first: float
    longest: float
    unhurried: float = 0.0


#: A registry's restart, a line that broke, a limit: gone in seconds, or in minutes.
_PASSING = Again(0.2, 5.0, 30.0)
#: Segments that are being truncated: it takes a second.
_IN_THE_WAY = Again(0.2, 1.0, 1.0)
#: Credentials and settings. What worked when the model was opened, and was renewed once by the client already, is mended by the next
#: pod's pull secret, `docker login`, a token server that is up again; and some registries say 403 for a token that has ended (ECR) or
#: to whoever asks too often (proxies before them). A process that reads weights ends with EIO, so it waits; but a registry that
#: counts wrong passwords locks the account, so it is asked seldom, and by those alone whom somebody waits for.
_BY_HAND = Again(1.0, 15.0)
#: Room is made at any moment: a model is removed, another demand evicts more than it needs.
_NO_ROOM = Again(1.0, 1.0)

#: None: asking again is no use. By then every host that has it was asked.
RULES: dict[type[Failure], Again | None] = {
    errors.Unreachable: _PASSING,
    errors.Refused: _IN_THE_WAY,
    errors.Unauthorized: _BY_HAND,
    errors.Forbidden: _BY_HAND,
    errors.InvalidInput: _BY_HAND,
    errors.Exhausted: _NO_ROOM,
    errors.NotFound: None,
    errors.Malformed: None,
    errors.Mismatch: None,
    errors.Failing: None,
    errors.AlreadyExists: None,
    errors.InUse: None,
    errors.NotAModel: None,
    errors.NotYet: None,
    errors.Unsupported: None,
}


def pause_after(failure: Failure, attempt: int, *, is_awaited: bool = True) -> float | None:
    """Seconds to wait before asking again, after the `attempt`-th failure in a row (from 1); None: asking again is no use.

    `is_awaited`: whether somebody waits.
    """
    rule = RULES[type(failure)]
    if rule is None:
        return None
    pause = min(rule.first * 2.0 ** min(attempt - 1, 10), rule.longest if is_awaited else rule.unhurried)
    return max(pause, failure.wait) if isinstance(failure, Unreachable) else pause


def is_waited_out(failure: Failure) -> bool:
    """Whether a prefetch goes on after this one."""
    rule = RULES[type(failure)]
    return rule is not None and rule.unhurried > 0


def most_hopeful(failures: list[Failure]) -> Failure:
    """Of what several places said, what is worth waiting for; else what the first, the best one, said."""
    return min(failures, key=lambda failure: pause_after(failure, 1) is None)
