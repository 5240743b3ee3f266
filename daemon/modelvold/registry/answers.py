"""What an answer must hold before it is believed: a descriptor, a whole document, a range. The rules, apart from
asking.
"""

from __future__ import annotations

import re

from modelvold.errors import InvalidInput, Malformed, Mismatch
from modelvold.oci.digest import Digest
from modelvold.oci.document import LARGEST_DOCUMENT, MANIFEST, Descriptor
from modelvold.oci.reference import Reference
from modelvold.registry.deadline import Deadline
from modelvold.registry.wire import Answer

_PIECE = 64 << 10
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_PUSH_AGAIN = "the producer must push it again"
_ASK_OPERATOR = "ask whoever runs the registry"


def descriptor_in(answer: Answer, reference: Reference, what: str) -> Descriptor | None:
    """What the headers of a manifest's HEAD or GET say; None where they leave out the digest or the size.

    Raises Mismatch when they name another digest than the reference.
    """
    digest, length = digest_in(answer), answer.headers.get("Content-Length", "")
    if digest is None or not re.fullmatch(r"[0-9]{1,18}", length):
        return None
    if reference.digest is not None and digest != reference.digest:
        raise Mismatch(f"{what}: {answer.address} answers with another manifest, {digest}", _ASK_OPERATOR)
    if int(length) > LARGEST_DOCUMENT:
        raise Malformed(f"{what}: the manifest is larger than {LARGEST_DOCUMENT >> 20} MiB", "it must be repacked")
    return Descriptor(media_type_in(answer), digest, int(length))


def digest_in(answer: Answer) -> Digest | None:
    """Docker-Content-Digest, where it is one that we can check."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except InvalidInput:
        return None


def media_type_in(answer: Answer) -> str:
    return str(answer.headers.get("Content-Type", MANIFEST)).partition(";")[0].strip()


def read_bounded(
    answer: Answer, what: str, deadline: Deadline, silence: float, limit: int, *, remedy: str = _ASK_OPERATOR
) -> bytes:
    """The whole body, never holding more than `limit` bytes and a piece. Raises Malformed, with `remedy`, for a longer
    one; Malformed for an encoded one.
    """
    declared = answer.stream.length
    body = bytearray()
    piece = memoryview(bytearray(_PIECE))
    try:
        _check_identity(answer, what)
        while declared is None or declared <= limit:
            got = answer.stream.readinto(piece, deadline.left(silence))
            body += piece[:got]
            if got == 0 or len(body) > limit:
                break
    except BaseException:
        answer.stream.discard()
        raise
    answer.stream.finish()
    if len(body) > limit or (declared or 0) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"the {limit} bytes declared"
        raise Malformed(f"{what}: {answer.address} answers with more than {size}", remedy)
    return bytes(body)


def check_digest(body: bytes, digest: Digest, what: str, address: str) -> None:
    """Raises Mismatch."""
    if Digest.of(body) != digest:
        raise Mismatch(f"{what}: what {address} sent has the digest {Digest.of(body)}, not {digest}", _PUSH_AGAIN)


def check_length(body: bytes, length: int, what: str, address: str) -> None:
    """Raises Malformed for a body shorter than `length` bytes; `read_bounded` lets none be longer."""
    if len(body) != length:
        raise Malformed(f"{what}: {address} has only {len(body)} of {length} bytes: a size that lies", _PUSH_AGAIN)


def skip_before(answer: Answer, start: int, end: int, size: int | None, what: str, *, longest: int | None) -> int:
    """How many bytes of the body come before `start`, of an answer of 200 or 206 to a request for bytes [start, end) of a
    blob that has `size` bytes by its manifest, where that is known.

    Raises Malformed when the answer is for another range or of another blob's size, is encoded, is longer or shorter than
    it says, or begins more than `longest` bytes too early (None: as early as it likes).
    """
    _check_identity(answer, what)
    declared = answer.stream.length
    if answer.status == 206:
        _check_content_range(answer, start, end, size, what)
        if declared not in {None, end - start}:
            cause = f"{answer.address} declares {declared} bytes for a range of {end - start} bytes"
            raise Malformed(f"{what}: {cause}", _ASK_OPERATOR)
        return 0
    if declared is not None and (declared < end or declared != (size or declared)):
        raise _lie(declared, size, what, answer)
    if longest is not None and start > longest:
        cause = f"{answer.address} ignores ranges, and {start} bytes are too many to read and throw away"
        raise Malformed(f"{what}: {cause}", "serve the model from a registry that answers ranges")
    return start


def _check_content_range(answer: Answer, start: int, end: int, size: int | None, what: str) -> None:
    said = answer.headers.get("Content-Range", "")
    form = _CONTENT_RANGE.fullmatch(said.strip())
    if form is None:
        raise Malformed(f"{what}: {answer.address} answers 206 without saying which bytes", _ASK_OPERATOR)
    first, last = int(form[1]), int(form[2])
    whole = int(form[3]) if form[3] != "*" else None
    if (first == start and last + 1 < end and whole == last + 1) or (size and whole not in {None, size}):
        raise _lie(whole, size, what, answer)
    if (first, last) != (start, end - 1):
        raise Malformed(f"{what}: {answer.address} answers with bytes {first}-{last + 1} instead", _ASK_OPERATOR)


def _lie(has: int | None, size: int | None, what: str, answer: Answer) -> Malformed:
    named = f" of {size} bytes" if size else ""
    only = "only " if has is not None and (size is None or has < size) else ""
    cause = f"{answer.address} has {only}{has} bytes of it: the manifest names a size{named} that lies"
    return Malformed(f"{what}: {cause}", _PUSH_AGAIN)


def _check_identity(answer: Answer, what: str) -> None:
    encoding = str(answer.headers.get("Content-Encoding", "identity")).strip().lower()
    coding = str(answer.headers.get("Transfer-Encoding", "chunked")).strip().lower()
    if encoding not in {"", "identity"} or coding != "chunked":  # the one that is undone where the body is read
        raise Malformed(f"{what}: {answer.address} encodes its answer though asked not to", _ASK_OPERATOR)
