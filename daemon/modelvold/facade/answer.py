"""Answers, and the one table by which failures become them (distribution-spec, "Error Codes"). Pure.

The body's text is what containerd puts into a pod's event when it fails to fetch a manifest or blob. Of a HEAD it shows the
status line alone, so there the text is the reason phrase. A status of 400 or more makes containerd go on to the next
host, but where that fails as well, it tells what the first one said; of a 404 it tells nothing, so that is kept for
what is known not to be ours to answer. 408 and 429 are never used, since containerd repeats them at once and without
end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType

from modelvold import errors
from modelvold.oci.digest import Digest
from modelvold.oci.document import to_json

JSON = "application/json"
#: Longer reasons are cut: an event has 1024 characters, and the status line is not the whole of it.
_LONGEST_PHRASE = 600
CHALLENGE = 'Basic realm="modelvold", charset="UTF-8"'

#: Status and the specification's code for each noun; a subclass without a row of its own is its parent.
CLASSES: MappingProxyType[type[errors.Failure], tuple[HTTPStatus, str]] = MappingProxyType(
    {
        errors.InvalidInput: (HTTPStatus.BAD_REQUEST, "NAME_INVALID"),
        errors.Unauthorized: (HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED"),
        errors.Forbidden: (HTTPStatus.FORBIDDEN, "DENIED"),
        errors.NotFound: (HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN"),
        errors.NotAModel: (HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN"),
        errors.Refused: (HTTPStatus.CONFLICT, "DENIED"),
        errors.AlreadyExists: (HTTPStatus.CONFLICT, "DENIED"),
        errors.Malformed: (HTTPStatus.UNPROCESSABLE_ENTITY, "MANIFEST_INVALID"),
        errors.Unreachable: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        errors.NotYet: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        errors.Exhausted: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        errors.Failing: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        errors.Unsupported: (HTTPStatus.NOT_IMPLEMENTED, "UNSUPPORTED"),
        errors.Failure: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """`length` is the body's as announced, which for a HEAD may be that of a body we do not have. `reason` is for the
    log; `is_ordinary` says that it refuses what is none of the façade's business, as every ordinary image is."""

    status: HTTPStatus
    media_type: str = JSON
    body: bytes = field(default=b"", repr=False)
    digest: Digest | None = None
    length: int | None = None
    challenge: bool = False
    reason: str = ""
    is_ordinary: bool = False

    @property
    def phrase(self) -> str:
        """The status line's words; for a refusal with its reason, in printable ASCII (RFC 9112 §4)."""
        if not self.reason or self.status < HTTPStatus.BAD_REQUEST:
            return self.status.phrase
        reason = "".join(c if " " <= c <= "~" else "?" for c in self.reason)
        return f"{self.status.phrase}: {reason[:_LONGEST_PHRASE]}"

    @property
    def headers(self) -> dict[str, str]:
        fields = {
            "Content-Type": self.media_type,
            "Content-Length": str(len(self.body) if self.length is None else self.length),
            "Docker-Distribution-Api-Version": "registry/2.0",
        }
        if self.digest:
            fields["Docker-Content-Digest"] = str(self.digest)
        if self.challenge:
            fields["WWW-Authenticate"] = CHALLENGE
        return fields


def document(body: bytes, media_type: str, digest: Digest) -> Answer:
    return Answer(HTTPStatus.OK, media_type, body, digest)


def refusal(failure: errors.Failure) -> Answer:
    """The answer for `failure`, by the table. A 401 carries the challenge that makes containerd send the pod's pull
    secret."""
    status, code = next(CLASSES[noun] for noun in type(failure).__mro__ if noun in CLASSES)
    return refused(status, code, str(failure), is_ordinary=isinstance(failure, errors.NotAModel))


def refused(status: HTTPStatus, code: str, text: str, *, is_ordinary: bool = False) -> Answer:
    body = to_json({"errors": [{"code": code, "message": text}]})
    return Answer(status, JSON, body, challenge=status is HTTPStatus.UNAUTHORIZED, reason=text, is_ordinary=is_ordinary)
