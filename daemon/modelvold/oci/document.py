"""OCI documents: descriptors, manifests, indexes (OCI image-spec v1.1 `descriptor.md`, `manifest.md`, `image-index.md`).

Strict where it guards us (digests, sizes, bounds), lenient where the world is (unknown fields, absent media types: old registries
and packers leave out both). A document keeps the bytes it was parsed from, because its digest is over them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from modelvold.errors import Malformed
from modelvold.oci.digest import Digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"

MANIFEST_TYPES = frozenset({MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({INDEX, DOCKER_LIST})

#: A registry must accept manifests of 4 MiB (distribution-spec); nothing larger is a manifest to us.
LARGEST_DOCUMENT = 4 << 20
#: Every layer costs a row, a directory and a descriptor; the largest models in the field have a few hundred.
MOST_LAYERS = 10_000
_LARGEST_BLOB = 1 << 50

NO_ANNOTATIONS: MappingProxyType[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Platform:
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "no platform"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of another blob. `size` in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: MappingProxyType[str, str] = field(default_factory=lambda: NO_ANNOTATIONS, hash=False)
    artifact_type: str = ""
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest; `document` are the bytes it was read from and `digest` is theirs."""

    document: bytes = field(repr=False)
    digest: Digest
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: MappingProxyType[str, str] = field(default_factory=lambda: NO_ANNOTATIONS, hash=False)


@dataclass(frozen=True, slots=True)
class Index:
    document: bytes = field(repr=False)
    digest: Digest
    media_type: str
    manifests: tuple[Descriptor, ...]


def parse(document: bytes, what: str) -> Manifest | Index:
    """The manifest or index in `document`; `what` names it in errors.

    Raises Malformed when it is too large, not JSON, or lacks what a manifest must have.
    """
    if len(document) > LARGEST_DOCUMENT:
        raise Malformed(
            f"{what}: the manifest is larger than {LARGEST_DOCUMENT >> 20} MiB",
            "ask the producer to repack it with fewer layers",
        )
    try:
        fields = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(
            f"{what}: not an OCI manifest: {error}", "check the reference, and that the registry is one"
        ) from error
    if fields.manifests is not None and fields.config is None:
        return _index(fields, document, what)
    return _manifest(fields, document, what)


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None
    artifact_type: str = ""
    platform: _Platform | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    annotations: dict[str, str] | None = None


def _manifest(fields: _Document, document: bytes, what: str) -> Manifest:
    if fields.schema_version != 2 or fields.config is None:
        raise Malformed(
            f"{what}: not an OCI manifest: schemaVersion {fields.schema_version}, {'a' if fields.config else 'no'} config"
        )
    layers = fields.layers or []
    if len(layers) > MOST_LAYERS:
        raise Malformed(
            f"{what}: {len(layers)} layers, more than {MOST_LAYERS}", "ask the producer to repack it with fewer layers"
        )
    return Manifest(
        document=document,
        digest=Digest.of(document),
        media_type=fields.media_type or MANIFEST,
        artifact_type=fields.artifact_type,
        config=_descriptor(fields.config, f"{what}: config"),
        layers=tuple(_descriptor(layer, f"{what}: layer {n}") for n, layer in enumerate(layers)),
        annotations=MappingProxyType(fields.annotations or {}),
    )


def _index(fields: _Document, document: bytes, what: str) -> Index:
    manifests = fields.manifests or []
    return Index(
        document=document,
        digest=Digest.of(document),
        media_type=fields.media_type or INDEX,
        manifests=tuple(_descriptor(entry, f"{what}: manifest {n}") for n, entry in enumerate(manifests)),
    )


def _descriptor(fields: _Descriptor, what: str) -> Descriptor:
    if not 0 <= fields.size <= _LARGEST_BLOB:
        raise Malformed(f"{what}: size {fields.size} is impossible")
    platform = fields.platform
    try:
        digest = Digest.parse(fields.digest)
    except Exception as error:
        raise Malformed(f"{what}: {error}") from error
    return Descriptor(
        media_type=fields.media_type,
        digest=digest,
        size=fields.size,
        annotations=MappingProxyType(fields.annotations or {}),
        artifact_type=fields.artifact_type,
        platform=Platform(platform.os, platform.architecture, platform.variant) if platform else None,
    )


def to_json(value: Any) -> bytes:
    """Canonical JSON of plain dicts and lists: keys in the order given, no white space."""
    return msgspec.json.encode(value)
