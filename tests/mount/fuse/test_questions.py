"""What the process asks at the gate: numbers of our own, each answered or withdrawn once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from modelvold.mount.fuse.questions import FuseQuestions
from modelvold.mount.fuse.wire import Answer, Ask


class Line:
    """Stands for a link."""

    def __init__(self) -> None:
        self.said: list[Answer] = []

    def answer(self, answers: list[Answer]) -> None:
        self.said += answers


@pytest.fixture
def questions() -> Iterator[FuseQuestions]:
    made = FuseQuestions()
    assert made.open() == []
    yield made
    made.close([])


def joined(questions: FuseQuestions) -> Line:
    line: Any = Line()
    questions.join(line)
    made: Line = line
    return made


def test_a_question_is_taken_and_answered_under_its_own_number(questions: FuseQuestions) -> None:
    line = joined(questions)
    questions.on_ask(Ask(70, 5, 4096, 12))
    questions.on_ask(Ask(71, 6, 100, 13))
    events = [questions.take(), questions.take()]
    assert questions.take() is None
    noted = [questions.note(event) for event in events if event]
    assert [(inode, read.need, read.pid) for inode, read in noted] == [(5, 4096, 12), (6, 100, 13)]
    questions.answer([noted[1][1]], is_allowed=True)
    questions.answer([noted[0][1]], is_allowed=False)
    questions.answer([noted[0][1]], is_allowed=True)
    assert line.said == [Answer(71, 100, True), Answer(70, 0, False)]
    assert questions.denied == 1


def test_what_is_withdrawn_is_not_taken_or_is_told(questions: FuseQuestions) -> None:
    line = joined(questions)
    told: list[int] = []
    questions.on_withdrawn = told.append
    questions.on_ask(Ask(70, 5, 4096, 12))
    questions.on_ask(Ask(71, 6, 4096, 12))
    questions.on_withdraw(70)
    event = questions.take()
    assert event
    inode, read = questions.note(event)
    assert inode == 6
    questions.on_withdraw(71)
    questions.on_withdraw(72)
    assert told[1:] == [read.fd]
    questions.answer([read], is_allowed=True)
    assert line.said == []
    assert questions.take() is None


def test_who_has_parted_asked_nothing(questions: FuseQuestions) -> None:
    joined(questions)
    questions.on_ask(Ask(70, 5, 4096, 12))
    event = questions.take()
    assert event
    questions.part()
    line = joined(questions)
    inode, read = questions.note(event)
    assert inode == 0
    questions.answer([read], is_allowed=True)
    assert line.said == []
