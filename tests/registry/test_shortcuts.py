"""The table of where hosts sent us: bounded, and nothing in it is shown."""

from __future__ import annotations

from dataclasses import replace

from modelvold.oci.reference import Repository
from modelvold.registry import shortcuts
from modelvold.registry.authorizer import Identity
from modelvold.registry.credentials import BasicCredentials
from modelvold.registry.hosts_toml import Host
from modelvold.registry.shortcuts import Place, Shortcuts

PLACE = Place(Host("https", "a.test"), Identity(Repository("a.test", "m"), remembered=True), "blobs/1")


def test_a_place_is_all_that_was_asked() -> None:
    held = Shortcuts()
    held.keep(PLACE, "https://s/1", 60)
    assert held.of(replace(PLACE)) == "https://s/1"
    user = BasicCredentials("user", "hush")
    for other in (
        replace(PLACE, path="blobs/2"),
        replace(PLACE, host=Host("https", "a.test", headers=(("x", "y"),))),
        replace(PLACE, identity=replace(PLACE.identity, remembered=False)),
        replace(PLACE, identity=replace(PLACE.identity, given=user)),
        replace(PLACE, identity=replace(PLACE.identity, repository=Repository("a.test", "n"))),
        replace(PLACE, brought=(user,)),
    ):
        assert held.of(other) == ""
        assert "hush" not in repr(other)


def test_what_has_ended_is_gone() -> None:
    held = Shortcuts()
    held.keep(PLACE, "https://s/1", 0)
    assert held.of(PLACE) == ""


def test_a_newer_one_is_not_forgotten_for_an_older_ones_failure() -> None:
    held = Shortcuts()
    held.keep(PLACE, "https://s/2", 60)
    held.forget(PLACE, "https://s/1")
    assert held.of(PLACE) == "https://s/2"
    held.forget(PLACE, "https://s/2")
    held.forget(PLACE, "https://s/2")
    assert held.of(PLACE) == ""


def test_it_is_bounded() -> None:
    held = Shortcuts()
    for n in range(shortcuts._MOST + 10):
        held.keep(replace(PLACE, path=f"blobs/{n}"), f"https://s/{n}", 60)
    assert held.of(replace(PLACE, path="blobs/9")) == ""
    assert held.of(replace(PLACE, path="blobs/10")) == "https://s/10"
