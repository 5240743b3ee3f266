"""A kill at every named point: no record invented, no durable or verified thing lost, no wrong byte, and it all goes on.

Scenes go through what the daemon does, step by step; a first run of each, without a kill, tells which steps come by which points. A
kill then is SIGKILL by the daemon itself at a hit of the point, chosen at random among those of a step. What is left is looked at
while nobody has it: the store by its rules, every mount by reading all of it. The next daemon, which nobody kills, must find its mounts and
all that the one before had called durable, sweep the rest, and bring the step and the scene to their end.

By each backend that fetches what is read: a scene goes through both, and a kill is in one of them, chosen with the place. Where readers
wait for the next daemon, they must have what they asked for.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from modelvold.lending.report import Report
from modelvold.points import Point

from tests.fault.killer import Act, Board
from tests.fault.node import Node, push
from tests.fault.remains import Remains, look
from tests.fault.tally import Tally
from tests.lab.backends import FUSE, LAZY
from tests.lab.mounts import mounted
from tests.lab.program import wait_until
from tests.lab.registry import Registry

pytestmark = pytest.mark.system

#: Seconds in which what goes on in threads after a step has come by its points.
_REST = 0.4
_SEED = os.environ.get("FAULT_SEED", "1")


@dataclass(frozen=True, slots=True)
class Step:
    """May be told again after the daemon died in the middle of it. `gives_up`: models whose bytes may be gone after it."""

    name: str
    do: Callable[[Node], object]
    gives_up: Sequence[str] = ()


def _pull(node: Node, name: str) -> None:
    assert node.pull(name), f"{name} was not all there in the end"


_POD, _CONTAINER = "k8s.io/1/image-volumes/pod/model", "k8s.io/2/container"
#: Each begins and ends with an empty store.
SCENES: dict[str, Sequence[Step]] = {
    "containerd": (
        Step("resolve", lambda node: node.ask_facade("one")),
        Step("unpack", lambda node: node.pull_by_containerd("one")),
        Step("image volume", lambda node: node.use("one", _POD)),
        Step("container", lambda node: node.use("one", _CONTAINER)),
        Step("give back", lambda node: node.give_back(_CONTAINER, _POD, node.target("one"))),
        Step("collect", lambda node: node.collect()),
        Step("rm", lambda node: node.remove("one"), gives_up=["one"]),
    ),
    "operator": (
        Step("mount", lambda node: node.mount("one")),
        Step("read", lambda node: node.read("one", share=0.3)),
        Step("pull", lambda node: _pull(node, "one")),
        Step("mount what shares", lambda node: node.mount("two")),
        Step("read what shares", lambda node: node.read("two")),
        Step("umount", lambda node: node.unmount("one")),
        Step("rm", lambda node: node.remove("one"), gives_up=["one"]),
        Step("umount the other", lambda node: node.unmount("two")),
        Step("rm the other", lambda node: node.remove("two"), gives_up=["two"]),
    ),
    "eviction": (
        Step("pull", lambda node: _pull(node, "two")),
        Step("pull what has no room", lambda node: _pull(node, "three"), gives_up=["two"]),
        Step("mount", lambda node: node.mount("two")),
        Step("read what has no room", lambda node: node.read("two"), gives_up=["three"]),
        Step("umount", lambda node: node.unmount("two")),
        Step("rm", lambda node: node.remove("two"), gives_up=["two"]),
        Step("rm the other", lambda node: node.remove("three"), gives_up=["three"]),
    ),
    "start": (
        Step("mount", lambda node: node.mount("one")),
        Step("restart in the middle", lambda node: node.restart_while_reading("one")),
        Step("umount", lambda node: node.unmount("one")),
        Step("restart", lambda node: node.restart()),
        Step("rm", lambda node: node.remove("one"), gives_up=["one"]),
    ),
}
#: A node, a scene, and the number of a step in it.
Place = tuple[Node, str, int]
#: How often each step came by each point when nobody was killed.
Ways = dict[Place, dict[Point, int]]


@pytest.fixture(scope="module")
def nodes(module_folder: Path, tally: Tally) -> Iterator[Sequence[Node]]:
    with ExitStack() as life:
        registry = life.enter_context(Registry(module_folder / "registry"))
        models = push(registry)
        made = []
        for backend in (LAZY, FUSE):
            folder = module_folder / backend.name
            folder.mkdir()
            board = life.enter_context(Board(folder / "board"))
            made.append(life.enter_context(Node(folder, registry, models, board, tally, backend=backend)))
        yield made


@pytest.fixture(scope="module")
def ways(nodes: Sequence[Node]) -> Ways:
    """From a run of every scene without a kill."""
    found: Ways = {}
    for node, (name, steps) in product(nodes, SCENES.items()):
        with _scene(node):
            for number, step in enumerate(steps):
                before = node.board.hits()
                step.do(node)
                _come_to_rest(node)
                found[node, name, number] = {point: hits - before[point] for point, hits in node.board.hits().items()}
    return found


def test_every_point_is_on_the_way(ways: Ways) -> None:
    """A new point needs a scene that comes by it, and none can be dead."""
    missed = [point.name for point in Point if not any(hits[point] for hits in ways.values())]
    assert not missed, f"no scene comes by {missed}"


@pytest.mark.parametrize("point", Point, ids=lambda point: point.name)
def test_a_kill_at_a_point_loses_nothing_that_was_promised(ways: Ways, point: Point, rounds: int) -> None:
    for number in range(rounds):
        order = random.Random(f"{_SEED}/{point.name}/{number}")
        places = [place for place, hits in ways.items() if hits[point]]
        assert places, "no scene comes by it"
        order.shuffle(places)
        assert any(_killed_at(point, place, order.randint(1, ways[place][point])) for place in places), (
            f"{[place[1:] for place in places]} came by it at first, and now not once"
        )


def _killed_at(point: Point, place: Place, hit: int) -> bool:
    """Threads may have done the same with fewer hits this time, then it is at the first; or with none at all."""
    return _killed(point, place, hit) or _killed(point, place, 1)


def _killed(point: Point, place: Place, hit: int) -> bool:
    """Goes through the scene, with one kill from the place on. Whether there was one."""
    node, scene, number = place
    what = f"{point.name} hit {hit} in {scene} by {node.backend}, step {SCENES[scene][number].name!r}, seed {_SEED}"
    was_killed = False
    with _scene(node, what):
        for at, step in enumerate(SCENES[scene]):
            if at != number:
                step.do(node)
                continue
            known = node.report()
            node.board.order(Act.KILL, point, hit)
            try:
                step.do(node)
            except Exception:
                if not node.has_died:
                    raise
            was_killed = wait_until(lambda: node.has_died, _REST)
            if was_killed:
                _look_at_the_dead_and_restart(node, known, step)
                step.do(node)
            node.board.cancel()
    return was_killed


def _come_to_rest(node: Node) -> None:
    """What a step has begun goes on in threads when it is answered."""
    hits, since = node.board.hits(), time.monotonic()
    while time.monotonic() - since < _REST / 4:
        if (now := node.board.hits()) != hits:
            hits, since = now, time.monotonic()
        time.sleep(0.01)


@contextmanager
def _scene(node: Node, what: str = "nobody killed") -> Iterator[None]:
    """Begins with an empty store, and sees that it ends with one."""
    node.begin()
    try:
        yield
        _check_swept(node, look(node.root))
        assert look(node.root).contents == ()
        assert look(node.root).snapshots == frozenset()
        assert [mount.point for mount in mounted(node.daemon.run)] == [str(node.own_mount)]
        assert node.report().volumes == ()
    except Exception as error:
        error.add_note(f"{what}\n{node.daemon.log_text()[-4000:]}")
        raise
    node.end()


def _look_at_the_dead_and_restart(node: Node, known: Report, step: Step) -> None:
    node.bury()
    remains = look(node.root)
    remains.check(node.sources, node.tally)
    _check_kept(known, remains, step.gives_up, node)
    mounts = {mount.point: mount.id for mount in mounted(node.daemon.run)}
    node.read_without_daemon()
    node.start_again()
    found = node.report()
    assert found.node.store_state == "ok"
    _check_kept(known, look(node.root), step.gives_up, node)
    _check_swept(node, look(node.root))
    now = {mount.point: mount.id for mount in mounted(node.daemon.run)}
    # A complete volume leaves FUSE at a start: whoever comes then is shown it by EROFS.
    left = {volume.path for volume in found.volumes if volume.backend != node.backend.name}
    held = {str(node.daemon.run / "volumes" / volume) for volume in remains.volumes} | {str(node.own_mount)}
    assert {point: mount for point, mount in mounts.items() if point in held - left} == {
        point: mount for point, mount in now.items() if point in mounts.keys() - left
    }, "the mounts there were are no longer the same"
    shown = {volume.path for volume in found.volumes if volume.path}
    assert shown == set(now) - {str(node.own_mount)}
    node.read_all()


def _check_kept(known: Report, remains: Remains, gives_up: Sequence[str], node: Node) -> None:
    """What was called durable or verified is in the catalog."""
    free = {node.models[name].reference for name in gives_up}
    for volume in known.volumes:
        if volume.reference in free:
            continue
        assert remains.recorded_of(volume.id) >= volume.durable, f"lost: {volume}"
        assert remains.recorded_of(volume.id, verified=True) >= volume.verified, f"verified no longer: {volume}"


def _check_swept(node: Node, remains: Remains) -> None:
    assert wait_until(lambda: _is_swept(node), 5), remains.unaccounted


def _is_swept(node: Node) -> bool:
    try:
        return not look(node.root).unaccounted
    except FileNotFoundError:  # the daemon moves what it has verified meanwhile
        return False
