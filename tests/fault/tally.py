"""What the fault tests did, and what came of it: counted as it happens, told at the end of the session in one line.

Every byte that is compared goes through here, and a wrong one is counted before the test ends by it. So `wrong bytes: 0` says that
none was seen, not that nobody looked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tests.lab.reader import Answer, Piece, check


@dataclass
class Tally:
    """`denied` counts reads that ended with an error, where they may; `compared` and `wrong` are bytes; `truncating` the power cuts after
    which something that was on the disk had to go."""

    kills: int = 0
    restarts: int = 0
    cuts: int = 0
    truncating: int = 0
    faults: int = 0
    denied: int = 0
    compared: int = 0
    wrong: int = 0

    def kill(self) -> None:
        self.kills += 1

    def restart(self) -> None:
        """A daemon that has come up on what an end in the middle had left."""
        self.restarts += 1

    def cut(self, *, truncating: bool) -> None:
        self.cuts += 1
        self.truncating += truncating

    def fault(self) -> None:
        """Of a registry, a network, a disk, or whatever else is no kill and no power cut."""
        self.faults += 1

    def compare(self, got: bytes | memoryview, expected: bytes | memoryview, what: object) -> None:
        """Raises AssertionError where they differ, in length too."""
        self.compared += len(expected)
        if got == expected:
            return
        wrong = abs(len(got) - len(expected)) + sum(a != b for a, b in zip(got, expected, strict=False))
        self.wrong += wrong
        raise AssertionError(f"wrong bytes: {wrong} of {len(expected)} in {what}")

    def read(
        self,
        pieces: Sequence[Piece],
        answers: Sequence[Answer],
        source: Callable[[int, int, int], bytes],
        errors: Collection[int] = (errno.EIO,),
    ) -> tuple[list[Piece], list[Piece]]:
        """What a reader was given: as `tests.lab.reader.check`, with every piece counted before it raises."""
        right: list[Piece] = []
        denied: list[Piece] = []
        failed: list[str] = []
        for piece, answer in zip(pieces, answers, strict=True):
            try:
                found = check([piece], [answer], source, errors)
            except AssertionError as error:
                failed.append(str(error))
                if "wrong bytes" in failed[-1]:
                    self.compared += piece.length
                    self.wrong += piece.length
                continue
            right += found[0]
            denied += found[1]
        self.compared += sum(piece.length for piece in right)
        self.denied += len(denied)
        assert not failed, "; ".join(failed)
        return right, denied

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.restarts} restarts, {self.cuts} power cuts ({self.truncating} truncated something), "
            f"{self.faults} faults; {self.compared / (1 << 30):.1f} GiB compared, {self.denied} reads ended with an error, "
            f"wrong bytes: {self.wrong}"
        )
