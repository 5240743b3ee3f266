"""A request's line and headers → what is asked for (distribution-spec, "Endpoints"). Pure.

Every part comes from outside: nothing leaves here unchecked, and no refusal repeats a credential.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs, unquote, urlsplit

from modelvold.errors import InvalidInput, NotFound
from modelvold.oci.reference import Reference, Repository
from modelvold.registry.credentials import BasicCredentials

#: Our own requests to registries carry it; one that arrives here has gone in a circle.
HOP_HEADER = "Modelvold-Hop"

_TARGET = re.compile(r"/v2/(?P<path>.+)/(?P<kind>manifests|blobs)/(?P<target>[^/]+)")
_MOST_FIELDS = 16


class Kind(Enum):
    BASE = "base"  # /v2/: is this a registry?
    MANIFEST = "manifests"
    BLOB = "blobs"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. `reference` is None for the base alone; `basic` is what the caller brought, if
    anything."""

    kind: Kind
    reference: Reference | None = None
    basic: BasicCredentials | None = field(default=None, repr=False)


def understand(target: str, headers: Mapping[str, str]) -> Asked:
    """What `target`, a request's path and query, asks for; the names of `headers` are in lower case.

    Raises InvalidInput for a missing or malformed part, NotFound for a path that is no registry's.
    """
    url = urlsplit(target)
    if url.path in {"/v2", "/v2/"}:
        return Asked(Kind.BASE)
    form = _TARGET.fullmatch(unquote(url.path))
    if form is None:
        raise NotFound(f"path {url.path[:300]!r}: not one of a registry's manifests or blobs")
    kind = Kind(form["kind"])
    host = _namespace(url.query)
    separator = "@" if ":" in form["target"] else ":"
    reference = Reference.parse(f"{host}/{form['path']}{separator}{form['target']}")
    if reference.repository != Repository(host, form["path"]):
        raise InvalidInput(f"repository {form['path'][:300]!r} of {host[:300]!r}: not written out in full")
    if kind is Kind.BLOB and reference.digest is None:
        raise InvalidInput(f"blob {form['target'][:100]!r}: not a digest")
    return Asked(kind, reference, _basic(headers.get("authorization", "")))


def _namespace(query: str) -> str:
    """The registry meant, which containerd names in `ns` when it asks somebody else."""
    try:
        named = set(parse_qs(query, max_num_fields=_MOST_FIELDS).get("ns", ()))
    except ValueError:
        named = set()
    if len(named) != 1:
        raise InvalidInput(
            "the request does not say which registry it means (?ns=)",
            "name this façade as a host in the hosts.toml of that registry, not as a registry of its own",
        )
    return named.pop()


def _basic(header: str) -> BasicCredentials | None:
    """Credentials of the scheme `Basic` (RFC 7617); None for anything else, which is then answered with a challenge."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        username, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return BasicCredentials(username, password) if colon else None
