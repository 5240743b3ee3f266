"""Models' layers: the remote protocol, by which a layer is committed in its Prepare and never fetched by containerd.

A Prepare of a layer that proves to be a model's opens the volume, mounts it, commits the target chain as a snapshot
that stands for it, and answers AlreadyExists; containerd then looks the target up and goes on. Any number of Prepares
for one target make one volume: the first works, the others wait for it. No lock is held while anybody waits for a
registry.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager

from modelvold import points
from modelvold.errors import AlreadyExists, NotYet, Refused
from modelvold.points import Point
from modelvold.snapshot.metastore import Metastore
from modelvold.snapshot.ports import Proofs, Volumes
from modelvold.snapshot.proof import Claim, prove, read_claim

log = logging.getLogger(__name__)

#: Seconds. containerd holds a lock for the length of a Prepare, behind which its garbage collection and then everybody
#: waits.
LONGEST_WAIT = 20.0
#: Prepares that may wait at once. Each holds a thread of the server, which must have some left for verbs that never
#: wait.
MOST_WAITING = 32


class Models:
    """`lending` is held while a volume is mounted and recorded as used, and must be held while unused ones are
    unmounted: a volume between the two steps is used by nobody that the records know."""

    def __init__(
        self, metastore: Metastore, volumes: Volumes, proofs: Proofs, lending: AbstractContextManager[object]
    ) -> None:
        self._metastore = metastore
        self._volumes = volumes
        self._proofs = proofs
        self._lending = lending
        self._flights: dict[str, Future[None]] = {}
        self._flights_lock = threading.Lock()  # guards _flights
        self._places = threading.BoundedSemaphore(MOST_WAITING)

    def commit(self, parent: str, labels: Mapping[str, str]) -> str:
        """Commits the layer that `labels` claim; returns the name of the committed snapshot, which may have been there
        before.

        Raises Refused when the labels are not proven, without any request made in their name; NotYet when the model is
        not open within LONGEST_WAIT; and whatever keeps it from being opened.
        """
        claim = read_claim(labels)
        prove(claim, self._proofs.synthetic_of(claim.pulled))
        if parent:
            raise Refused(
                f"image {claim.image}: its model's layer lies on the layer {parent!r}, and should be the only one"
            )
        if self._metastore.find(claim.target) is None:
            self._join(claim.target, str(claim.image), lambda: self._open(claim, labels))
        return claim.target

    def _join(self, target: str, image: str, fly: Callable[[], None]) -> None:
        if not self._places.acquire(blocking=False):
            raise NotYet(f"image {image}: {MOST_WAITING} models are being opened already", "it will be tried again")
        try:
            with self._flights_lock:
                flight = self._flights.get(target)
                if flight is None:
                    own = self._flights[target] = Future()
            if flight is not None:
                _wait(flight, image)
            else:
                self._fly(target, own, fly)
        finally:
            self._places.release()

    def _fly(self, target: str, flight: Future[None], fly: Callable[[], None]) -> None:
        try:
            fly()
        except BaseException as error:
            flight.set_exception(error)
            raise
        else:
            flight.set_result(None)
        finally:
            with self._flights_lock:
                del self._flights[target]

    def _open(self, claim: Claim, labels: Mapping[str, str]) -> None:
        if self._metastore.find(claim.target) is not None:
            return  # by a flight that landed between our look and our start
        volume = self._volumes.open(claim.image.repository, claim.original, str(claim.image), LONGEST_WAIT)
        with self._lending:
            self._volumes.mounted(volume)
            points.at(Point.SNAPSHOT_MOUNTED)
            try:
                self._metastore.commit_volume(claim.target, labels, volume)
            except AlreadyExists:
                return
            points.at(Point.SNAPSHOT_COMMITTED)
        log.info("commit model image=%s volume=%s snapshot=%s", claim.image, volume, claim.target)


def _wait(flight: Future[None], image: str) -> None:
    try:
        error = flight.exception(timeout=LONGEST_WAIT)
    except TimeoutError:
        raise NotYet(f"image {image}: it is still being opened", "it will be tried again") from None
    if error is not None:
        raise copy.copy(error) from error  # one raised object belongs to one thread
