"""What the fake registry may do wrong, whom it answers, and what it was asked. Values only."""

from __future__ import annotations

import base64
import re
import threading
from dataclasses import dataclass, field

MANIFEST_PATH = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<target>[^/]+)")
BLOB_PATH = re.compile(r"/v2/(?P<repository>.+)/blobs/(?P<target>[^/]+)")


@dataclass(frozen=True, slots=True)
class Auth:
    """Whom the registry answers. Without `bearer` it wants Basic; with it, tokens from its own `/token`.

    With `anonymous` the token server gives tokens to those without a name too. `life` in seconds, None leaves it out. `realm` is
    the origin where its token server is said to be, if not its own.
    """

    username: str = "user"
    password: str = "secret"
    bearer: bool = False
    anonymous: bool = False
    life: int | None = 300
    token_key: str = "token"
    realm: str = ""

    def is_known(self, authorization: str) -> bool:
        pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return authorization == f"Basic {pair}"


@dataclass(slots=True)
class Request:
    """One request as it came and what became of it. `sent` counts body bytes, while they are handed to the kernel."""

    method: str
    path: str
    query: dict[str, str]
    range: str
    auth: str  # "", "Basic" or "Bearer"
    headers: dict[str, str] = field(repr=False)  # names in lower case
    connection: int  # equal for requests on one kept-alive connection
    status: int = 0
    sent: int = 0

    @property
    def is_blob(self) -> bool:
        return BLOB_PATH.fullmatch(self.path) is not None

    @property
    def is_manifest(self) -> bool:
        return MANIFEST_PATH.fullmatch(self.path) is not None


@dataclass(slots=True)
class Behaviour:
    """What the registry does wrong, from now on. All of it is off at first; `only` narrows it to paths that match."""

    only: str = ".*"
    #: Before each answer, in seconds.
    delay: float = 0
    #: Bytes a second of a body, and how many are sent at once.
    rate: float | None = None
    piece: int = 64 << 10
    #: Seconds between each byte of an answer's headers and the next.
    drip_headers: float = 0
    #: Status by path (regular expression, whole path), the first that matches.
    status: dict[str, int] = field(default_factory=dict)
    #: Status by method, before anything else.
    status_of_method: dict[str, int] = field(default_factory=dict)
    #: Header fields beside or instead of the right ones, on every answer of 2xx and on those of `status`.
    headers: dict[str, str] = field(default_factory=dict)
    #: Accept, read the request, never answer (until the end).
    hang: bool = False
    #: Send so many bytes of a body, then nothing (until the end, or `resume` is set).
    stall_after: int | None = None
    resume: threading.Event = field(default_factory=threading.Event)
    #: Send so many bytes of a body, then close the connection, or reset it.
    cut_after: int | None = None
    reset_after: int | None = None
    #: Bytes after the body's end: declared in Content-Length, or behind its back.
    extra: bytes = b""
    extra_undeclared: bool = False
    #: Flip a bit in every blob's first byte.
    corrupt: bool = False
    #: Leave out Docker-Content-Digest, or Content-Length of manifests' HEADs.
    no_digest: bool = False
    no_length: bool = False
    #: What Docker-Content-Digest says, and what Content-Range says the whole is.
    claimed_digest: str = ""
    claimed_size: int | None = None
    ignore_range: bool = False
    #: Answer so many bytes further on than asked.
    wrong_range: int = 0
    chunked: bool = False
    #: HTTP/1.0 style: no length, the end of the connection is the end of the body.
    until_close: bool = False
    #: Send blob requests to the same path, with a signature, of this origin ("http://host:port") by `redirect_status`.
    redirect_to: str = ""
    redirect_status: int = 307
    #: Beside the signature in the address sent to ("name=text&…"), and headers of the answer that sends there.
    redirect_query: str = ""
    redirect_headers: dict[str, str] = field(default_factory=dict)
    #: As storage: a signature is good for so many requests, and answered with 403 from then on.
    signature_uses: int | None = None
    #: So many of the next tokens given are forgotten at once.
    token_losses: int = 0
    #: Close the connection after each answer without having said so.
    drop_idle: bool = False
