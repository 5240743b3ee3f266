"""References: `[host[:port]/]repository[:tag][@digest]`, with Docker's familiar short names.

Grammar: distribution/reference. `busybox` is `docker.io/library/busybox:latest`; the first component is a host only when it has
a dot, a colon, an upper-case letter, or is `localhost`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from modelvold.errors import InvalidInput
from modelvold.oci.digest import Digest

DEFAULT_HOST = "docker.io"
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
)
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """Where a content comes from: the registry's host as a reference names it, and the repository's path. The *source*."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    @classmethod
    def parse(cls, text: str) -> Repository:
        """The inverse of `str()`. Raises InvalidInput."""
        reference = Reference.parse(text)
        if str(reference.repository) != text:
            raise InvalidInput(f"repository {text[:300]!r}: not of the form host/path")
        return reference.repository


@dataclass(frozen=True, slots=True)
class Reference:
    """A checked, normalised reference. At least one of `tag` and `digest` is set; where both are, the digest decides."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises InvalidInput, naming the part that is wrong. No tag and no digest means the tag `latest`."""
        rest, digest = text, None
        if "@" in rest:
            rest, _, digest_text = rest.partition("@")
            digest = Digest.parse(digest_text)
        host, _, path = rest.partition("/")
        if not path or not _looks_like_host(host):
            host, path = DEFAULT_HOST, rest
        if host == "index.docker.io":
            host = DEFAULT_HOST
        path, colon, tag = path.partition(":")
        if host == DEFAULT_HOST and "/" not in path:
            path = f"library/{path}"
        _check(_HOST, host, "host", text)
        _check(_REPOSITORY, path, "repository", text)
        if len(host) + 1 + len(path) > _LONGEST_NAME:
            raise InvalidInput(f"reference {text[:100]!r}…: the name is longer than {_LONGEST_NAME} characters")
        if colon:
            _check(_TAG, tag, "tag", text)
        elif digest is None:
            tag = "latest"
        return cls(Repository(host, path), tag or None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"

    @property
    def target(self) -> str:
        """What goes into `/v2/<path>/manifests/<target>`: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag or "latest"

    def at(self, digest: Digest) -> Reference:
        """This repository, pinned to `digest`, without the tag."""
        return replace(self, tag=None, digest=digest)


def _looks_like_host(component: str) -> bool:
    return any(c in component for c in ".:[") or component == "localhost" or component != component.lower()


def _check(form: re.Pattern[str], part: str, name: str, whole: str) -> None:
    if form.fullmatch(part) is None:
        raise InvalidInput(
            f"reference {whole[:300]!r}: {part[:100]!r} is not a valid {name}",
            "write it as host[:port]/repository[:tag][@sha256:…]",
        )
