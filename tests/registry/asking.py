"""Words the client's tests share."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from modelvold.layer.extent import BlobOffset
from modelvold.oci.digest import Digest
from modelvold.oci.reference import Reference, Repository
from modelvold.registry.body import Body
from modelvold.registry.client import Client

REPOSITORY = "models/tiny"
NOWHERE = "127.0.0.1:1"  # tcpmux: nobody listens there


def reference(host: str, rest: str = f"{REPOSITORY}:v1") -> Reference:
    return Reference.parse(f"{host}/{rest}")


def repository(host: str, path: str = REPOSITORY) -> Repository:
    return Repository(host, path)


def open_range(
    client: Client,
    host: str,
    digest: Digest,
    start: int,
    end: int,
    timeout: float = 5,
    size: int | None = None,
    avoid: AbstractSet[str] = frozenset(),
    *,
    takes_whole: bool = False,
) -> Body:
    return client.open_range(
        repository(host),
        digest,
        BlobOffset(start),
        BlobOffset(end),
        timeout=timeout,
        size=size,
        avoid=avoid,
        takes_whole=takes_whole,
    )


def drain(body: Body, piece: int = 64 << 10) -> bytes:
    got, view = bytearray(), memoryview(bytearray(piece))
    while count := body.readinto(view):
        got += view[:count]
    return bytes(got)


def read_range(client: Client, host: str, digest: Digest, start: int, end: int, timeout: float = 5) -> bytes:
    with open_range(client, host, digest, start, end, timeout) as body:
        return drain(body)
