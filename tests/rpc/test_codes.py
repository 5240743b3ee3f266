from __future__ import annotations

import grpc
from modelvold import errors
from modelvold.rpc.codes import CODES, code_of


def _kinds(kind: type[errors.Failure]) -> set[type[errors.Failure]]:
    return {kind}.union(*(_kinds(child) for child in kind.__subclasses__() if child.__module__ == "modelvold.errors"))


def test_every_noun_of_failure_has_its_code() -> None:
    assert set(CODES) == _kinds(errors.Failure)
    assert grpc.StatusCode.OK not in CODES.values()


def test_a_rooms_own_failure_has_its_ancestors_code() -> None:
    class Peculiar(errors.InUse):
        pass

    assert code_of(Peculiar("x")) is grpc.StatusCode.FAILED_PRECONDITION
