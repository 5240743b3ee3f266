"""Ignore marks: a segment that is open and watched is read without asking, every other is asked about.

What a segment is may change while it is marked, and a mark that comes after it began to leave would mean EIO for ever. So whoever
sets one looks again afterwards, and whoever changes what a segment is has its mark settled after that: the last of them is right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from modelvold.mount.questions import Questions
from modelvold.store.segment import Segment

log = logging.getLogger(__name__)

_PAUSE = 0.01


class Marks:
    def __init__(self, questions: Questions, is_watched: Callable[[Segment], bool]) -> None:
        self._questions = questions
        self._is_watched = is_watched

    def settle(self, segment: Segment) -> None:
        """A mark that fails costs events, no byte: a content removed meanwhile has no file any more."""
        try:
            while True:
                is_silent = self._is_silent(segment)
                self._change(self._questions.silence if is_silent else self._questions.ask_again, segment)
                if is_silent == self._is_silent(segment):
                    return
        except OSError as error:
            log.warning("mark segment=%s failed error=%s", segment.path, error)

    def ask(self, segment: Segment) -> None:
        """It is leaving. Raises OSError where it cannot be asked about: then it must not be truncated."""
        with suppress(FileNotFoundError):  # its content was removed meanwhile
            self._change(self._questions.ask_again, segment)

    def _is_silent(self, segment: Segment) -> bool:
        return segment.is_open and self._is_watched(segment)

    def _change(self, change: Callable[[Segment], None], segment: Segment) -> None:
        """Once more where a content moved to the shared place between our naming and the kernel's look."""
        try:
            change(segment)
        except FileNotFoundError:
            time.sleep(_PAUSE)
            change(segment)
