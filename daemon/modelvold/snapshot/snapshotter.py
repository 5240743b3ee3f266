"""containerd's ten verbs (`core/snapshots/snapshotter.go`), on the metastore and the folders.

None of them but a model's Prepare waits for anything beyond SQLite, directories and a local mount. Commit and Update
are called inside containerd's own write transaction and call nobody back. Labels are no input to what a verb does, but
for the claim of a model's layer, which is proven first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from modelvold import points
from modelvold.errors import AlreadyExists, Refused
from modelvold.points import Point
from modelvold.snapshot import filters, mounts
from modelvold.snapshot.folders import Folders
from modelvold.snapshot.mapping import IdMap, id_map
from modelvold.snapshot.metastore import Metastore
from modelvold.snapshot.models import Models
from modelvold.snapshot.mounts import Layout, Mount
from modelvold.snapshot.ports import Proofs, Volumes
from modelvold.snapshot.proof import is_claim
from modelvold.snapshot.record import Info, Kind, Record, Usage
from modelvold.store.database import Database

log = logging.getLogger(__name__)

#: How the key ends under which containerd chowns all of an image for a plugin without the capability `remap-ids`.
_TO_CHOWN = "-remap"
_STAYS = "what runs on them goes on, and can end; nothing new starts on them until modelvold runs again"
_OVERLAY_INDEX = Path("/sys/module/overlay/parameters/index")


class Snapshotter:
    """Snapshots below `root`/snapshots. Made with the folders swept; safe to call from any thread. `lending`: see Models; others
    than containerd use volumes too."""

    def __init__(
        self,
        root: Path,
        database: Database,
        volumes: Volumes,
        proofs: Proofs,
        lending: AbstractContextManager[object] | None = None,
    ) -> None:
        snapshots = root.absolute() / "snapshots"
        self._metastore = Metastore(database)
        self._folders = Folders(snapshots)
        self._layout = Layout(snapshots, ("index=off",) if _OVERLAY_INDEX.exists() else ())
        self._volumes = volumes
        self._lending = lending or threading.Lock()
        self._models = Models(self._metastore, volumes, proofs, self._lending)
        self._sweep_lock = threading.Lock()  # guards the folder `removed`: one sweep at a time
        self._sweep()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """An active snapshot on `parent` (empty: on nothing). AlreadyExists with labels that ask for a target chain
        means that the target is there; otherwise that the key is taken. Raises what `Metastore.create` and
        `Models.commit` do, and Refused for an image volume that would be empty."""
        if is_claim(labels):
            target = self._models.commit(parent, labels)
            raise AlreadyExists(f"snapshot {target!r}: it is there, and stands for a model")
        return self._create(key, Kind.ACTIVE, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """Like `prepare`, read-only; it can never be committed."""
        return self._create(key, Kind.VIEW, parent, labels)

    def mounts(self, key: str) -> Sequence[Mount]:
        """The same mounts again, volumes mounted anew where they were lost. Raises NotFound; Refused for committed
        ones."""
        record = self._metastore.get(key)
        if record.info.kind is Kind.COMMITTED:
            raise Refused(f"snapshot {key!r}: it is committed and has no mounts", "prepare or view a snapshot on it")
        return mounts.mounts(record, self._layout, self._mounted(record.volume), self._shifted(record))

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """See `Metastore.commit`. Its usage is taken now and not again: a committed snapshot does not change."""
        record = self._metastore.get(key)
        is_active = record.info.kind is Kind.ACTIVE
        usage = self._folders.usage(record.layer.number) if is_active else Usage()
        self._metastore.commit(name, key, parent, labels, usage)

    def remove(self, key: str) -> None:
        """Takes the record away; its folder waits for `cleanup`. Raises InUse while it is a parent.

        Not to be there is no error: containerd's collector takes any error of a Remove but a failed precondition as
        its own failure and collects nothing more, and whoever must know whether a snapshot existed asks containerd's
        metadata, which answers that without us.
        """
        if not self._metastore.remove(key):
            log.info("miss snapshot key=%s verb=remove", key)
        points.at(Point.SNAPSHOT_REMOVED)

    def stat(self, key: str) -> Info:
        """Raises NotFound."""
        return self._metastore.get(key).info

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
        """See `Metastore.update`."""
        return self._metastore.update(name, labels, paths)

    def list(self, wanted: Sequence[str]) -> Sequence[Info]:
        """The snapshots that any of the filters `wanted` means (none: all). Raises InvalidInput."""
        return self._metastore.list(filters.matcher(wanted))

    def usage(self, key: str) -> Usage:
        """Of an active snapshot what its folder takes now, of others what was recorded; nothing for a volume, whose
        bytes are the store's. Raises NotFound."""
        record = self._metastore.get(key)
        return self._folders.usage(record.layer.number) if record.info.kind is Kind.ACTIVE else record.usage

    def cleanup(self) -> None:
        """Reclaims what removed snapshots have left: folders, and mounts of volumes that nothing uses."""
        self._sweep()
        with self._lending:
            self._volumes.unmount_unused(self._metastore.volumes())

    def users_of(self, volume: str) -> Sequence[Info]:
        """The snapshots that keep a volume: those that stand for it and those above, the youngest first."""
        return self._metastore.users(volume)

    def volumes(self) -> set[str]:
        """The volumes that snapshots keep."""
        return self._metastore.volumes()

    def counts(self) -> tuple[int, int]:
        """How many there are, and how many of them are in use: not committed, but a container's or an image volume's."""
        found = self._metastore.list(lambda _info: True)
        return len(found), sum(info.kind is not Kind.COMMITTED for info in found)

    def tell_what_stays(self) -> None:
        """At the daemon's end: whether something runs on snapshots."""
        count, in_use = self.counts()
        if in_use:
            log.info("leave snapshots count=%d in_use=%d reason=%r", count, in_use, _STAYS)

    def _create(self, key: str, kind: Kind, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        if not parent and mounts.is_image_volume(key):
            raise Refused(
                "image volume: what was pulled has no layers that containerd understands (a model pulled around the"
                " façade?) and would be empty",
                "remove the image, see that hosts.toml names the façade, pull it again",
            )
        # Before there is a record, and so outside its transaction: mounting may take a moment.
        below = self._metastore.find(parent) if parent else None
        if below and below.volume and key.endswith(_TO_CHOWN):
            raise Refused(
                f"snapshot {key[-100:]!r}: containerd would copy the whole model to give it to a user namespace",
                'set capabilities = ["remap-ids"] in the proxy plugin of containerd\'s configuration (see the README)',
            )
        paths = self._mounted(below.volume) if below else {}
        ids = id_map(labels)
        found: list[Mount] = []

        def make(record: Record) -> None:
            found.extend(mounts.mounts(record, self._layout, paths, self._shifted(record)))
            self._folders.make(record, ids.root if ids else None)
            points.at(Point.SNAPSHOT_FOLDER_MADE)

        self._metastore.create(key, kind, parent, labels, make)
        return found

    def _shifted(self, record: Record) -> IdMap | None:
        """By what its owners are to be shifted. To a plugin without the capability `remap-ids` containerd gives as parent a
        snapshot in which it has chowned everything: that belongs to the host's id for root, and is shown as it is."""
        ids = id_map(record.info.labels)
        parent = next(iter(record.parents), None)
        if ids is None or parent is None or (parent.volume is None and self._folders.owner(parent.number) == ids.root):
            return None
        return ids

    def _mounted(self, volume: str | None) -> dict[str, Path]:
        return {} if volume is None else {volume: self._volumes.mounted(volume)}

    def _sweep(self) -> None:
        with self._sweep_lock:
            with self._metastore.folders() as live:
                self._folders.set_aside(live)
            self._folders.remove()
