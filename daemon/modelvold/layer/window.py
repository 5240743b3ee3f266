"""Which bytes of a tar to ask for, so that its headers are found with few requests and few bytes.

Where files are large, only headers are fetched, with what little lies behind them. Where they are small, asking for
every header by itself would cost a round trip each: the archive is read through then, in requests that double.
"""

from __future__ import annotations

from modelvold.layer.extent import ContentOffset, Extent

#: What costs about as much time as one more round trip: 256 KiB in 20 ms are 100 Mbit/s.
_NEAR = 256 << 10
#: Of a request, which is streamed and not held: at 10 Gbit/s fifty milliseconds, longer than any round trip.
_LONGEST = 64 << 20


def next_window(wanted: Extent, before: Extent | None, length: int) -> Extent:
    """What to ask for, of a content of `length` bytes, when a walker wants `wanted` and `before` was read last.

    It begins where `wanted` does, or, where the archive is read through, where `before` ended, so that nothing is left out.
    """
    if before is None or wanted.start > before.end + _NEAR:
        start, size = wanted.start, _NEAR
    else:
        start, size = min(wanted.start, before.end), min(2 * before.length, _LONGEST)
    return Extent(start, ContentOffset(max(wanted.end, min(start + size, length))))
