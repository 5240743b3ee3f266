"""Tokens: shared, renewed in time, dropped once."""

from __future__ import annotations

import threading

import pytest
from modelvold.errors import Malformed, Unreachable
from modelvold.registry import tokens
from modelvold.registry.deadline import Deadline
from modelvold.registry.tokens import Grant, Token, Tokens

GRANT = Grant("https://a/t", "s", "repository:a:pull", None)


class Server:
    def __init__(self, life: float = 300) -> None:
        self.asked = 0
        self._life = life

    def ask(self) -> Token:
        self.asked += 1
        return Token(f"t{self.asked}", self._life)


def test_a_token_is_shared_until_dropped() -> None:
    held, server, deadline = Tokens(), Server(), Deadline(10)
    assert [held.get(GRANT, server.ask, deadline) for _ in range(3)] == ["t1"] * 3
    held.drop(GRANT, "t0")
    assert held.get(GRANT, server.ask, deadline) == "t1"
    held.drop(GRANT, "t1")
    assert held.get(GRANT, server.ask, deadline) == "t2"


def test_grants_do_not_share() -> None:
    held, server, deadline = Tokens(), Server(), Deadline(10)
    other = Grant(GRANT.realm, GRANT.service, "repository:b:pull", None)
    assert held.get(GRANT, server.ask, deadline) != held.get(other, server.ask, deadline)


def test_a_life_that_is_over() -> None:
    held, server = Tokens(), Server(life=1e-9)
    assert [held.get(GRANT, server.ask, Deadline(10)) for _ in range(3)] == ["t1", "t2", "t3"]


def test_a_failure_is_not_kept() -> None:
    held, server = Tokens(), Server()

    def fail() -> Token:
        raise Unreachable("down")

    with pytest.raises(Unreachable):
        held.get(GRANT, fail, Deadline(10))
    assert held.get(GRANT, server.ask, Deadline(10)) == "t1"


def test_who_waits_for_another_has_a_deadline() -> None:
    held, asking, done = Tokens(), threading.Event(), threading.Event()

    def slow() -> Token:
        asking.set()
        done.wait(10)
        return Token("t", 300)

    thread = threading.Thread(target=held.get, args=(GRANT, slow, Deadline(10)))
    thread.start()
    asking.wait(10)
    with pytest.raises(TimeoutError):
        held.get(GRANT, slow, Deadline(0.05))
    done.set()
    thread.join()
    assert held.get(GRANT, slow, Deadline(10)) == "t"


def test_parse() -> None:
    assert tokens.parse(b'{"token":"a","access_token":"b","expires_in":5}', "x") == Token("a", 5)
    assert tokens.parse(b'{"access_token":"b"}', "x") == Token("b", 60)
    assert tokens.parse(b'{"token":"a","expires_in":-1,"issued_at":"whenever"}', "x").life == 60
    assert "hush" not in repr(Token("hush", 1))
    for body in (b"", b"{}", b'{"token":"a b\\r\\n"}', b'{"token":"\\u20ac"}', b'{"token":"a","expires_in":"5"}'):
        with pytest.raises(Malformed, match="x: its token server"):
            tokens.parse(body, "x")
