"""Named points, where a test may stop the world: each is an audit event (`sys.audit`), which nobody hears in production.

A point stands between two steps that a crash must not be able to part: what is true on disk just there is what the next start
finds. `tests/fault` ends the process at each of them.
"""

from __future__ import annotations

import sys
from enum import StrEnum

EVENT = "modelvold.point"


class Point(StrEnum):
    """Room, then what has just been done."""

    CATALOG_BEGUN = "catalog: transaction begun, nothing written"
    CATALOG_COMMITTED = "catalog: transaction committed and synced"
    STORE_FILES_MADE = "store: a content's files made, no row yet"
    STORE_CONTENT_ADDED = "store: a content's row and files made, in no table yet"
    STORE_APPENDED = "store: bytes appended, nobody told"
    STORE_SYNCED = "store: a segment synced, not recorded"
    STORE_RECORDED = "store: a batch of segments recorded, nobody told"
    STORE_DIGEST_KEPT = "store: digests of segments that will go written down"
    STORE_UNRECORDED = "store: segments unrecorded, their bytes still there"
    STORE_TRUNCATED = "store: one of several segments truncated"
    STORE_JUDGED = "store: a content called verified, still in its source's place"
    STORE_MOVED = "store: a verified content renamed to the shared place, not recorded there"
    STORE_REMOVED = "store: a content's row removed, its files still there"
    VOLUME_IMAGE_WRITTEN = "volume: an image written, its volume in no catalog"
    VOLUME_ADDED = "volume: a volume in the catalog, told to nobody"
    FETCH_OPENED = "fetch: a range asked for, nothing read"
    FETCH_ENDED = "fetch: a transfer ended, the plan not told"
    MOUNT_WATCHED = "mount: a volume's segments watched, not mounted"
    MOUNT_MOUNTED = "mount: a volume mounted, not remembered"
    MOUNT_UNMOUNTED = "mount: a volume unmounted, still remembered"
    GATE_TAKEN = "mount: events taken from the kernel, none judged"
    GATE_ANSWERED = "mount: a read answered, its note still there"
    SNAPSHOT_MOUNTED = "snapshot: a model mounted, its snapshot not committed"
    SNAPSHOT_COMMITTED = "snapshot: a model's snapshot committed, containerd not told"
    SNAPSHOT_FOLDER_MADE = "snapshot: a folder made, its record not committed"
    SNAPSHOT_REMOVED = "snapshot: a record removed, its folder still there"


def at(point: Point) -> None:
    sys.audit(EVENT, point)
