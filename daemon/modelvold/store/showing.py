"""What of a segment a reader may have before its digest has matched: `[store] verify`. Pure.

Whatever the setting, what comes again for an evicted segment of a verified content must match first: that content may be shared by
sources that never sent these bytes (rule 6).
"""

from __future__ import annotations

from enum import StrEnum

from modelvold.store.content import Content, content_of
from modelvold.store.segment import Segment


class Verify(StrEnum):
    SERVE = "serve"  # bytes as they come
    SEGMENT = "segment"  # a segment when it is complete, and right where its own digest is known
    LAYER = "layer"  # nothing of a layer before all of it has matched


def waits_for_layer(verify: Verify, content: Content) -> bool:
    """Whether what comes of it is shown when all of it has matched, and not before: what lies in the shared place and is no longer
    verified may be read by sources that it does not come from."""
    return not content.is_verified and (verify is Verify.LAYER or not content.source)


def withholds(verify: Verify, segment: Segment) -> bool:
    """Whether the bytes there are of it must wait. A durable one of a verified content has matched."""
    if waits_for_layer(verify, content_of(segment)):
        return True
    return not segment.is_complete and (verify is not Verify.SERVE or segment.digest is not None)
