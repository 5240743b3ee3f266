"""Builds the documents that packers write, for tests."""

from __future__ import annotations

import json
from typing import Any

from modelvold.oci.digest import Digest
from modelvold.oci.document import Index, Manifest, parse

CNCF = "application/vnd.cncf.model"
CNAI = "application/vnd.cnai.model"


def layer(path: str | None = "config.json", content: bytes = b"{}", **fields: Any) -> dict[str, Any]:
    """A raw layer's descriptor as modctl writes it; `metadata` and other fields replace what is there."""
    metadata = {"name": (path or "").rsplit("/", 1)[-1], "mode": 420, "uid": 0, "gid": 0, "size": len(content)}
    metadata |= {"mtime": "2025-07-01T10:20:30.123456789Z", "typeflag": 0} | fields.pop("metadata", {})
    annotations = {"org.cncf.model.file.metadata+json": json.dumps(metadata)}
    if path is not None:
        annotations["org.cncf.model.filepath"] = path
    return {
        "mediaType": f"{CNCF}.weight.v1.raw",
        "digest": str(Digest.of(content)),
        "size": len(content),
        "annotations": annotations,
    } | fields


def document(*layers: dict[str, Any], **fields: Any) -> bytes:
    """A ModelPack manifest's bytes."""
    config = {"mediaType": f"{CNCF}.config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": f"{CNCF}.manifest.v1+json",
        "config": config,
        "layers": list(layers),
    }
    return json.dumps(body | fields).encode()


def manifest(*layers: dict[str, Any], **fields: Any) -> Manifest:
    found = parse(document(*layers, **fields), "here/model:1")
    assert isinstance(found, Manifest)
    return found


def image(seed: str = "app") -> bytes:
    """An ordinary image's manifest."""
    return document(
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": str(Digest.of(seed.encode())),
            "size": 3,
        },
        artifactType="",
        config={"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2},
    )


def entry(content: bytes, platform: str = "", artifact_type: str = "") -> dict[str, Any]:
    """An index's descriptor of the manifest `content`; `platform` is os/architecture."""
    fields: dict[str, Any] = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(Digest.of(content)),
        "size": len(content),
    }
    if platform:
        system, _, architecture = platform.partition("/")
        fields["platform"] = {"os": system, "architecture": architecture}
    if artifact_type:
        fields["artifactType"] = artifact_type
    return fields


def index_document(*entries: dict[str, Any]) -> bytes:
    body = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list(entries)}
    return json.dumps(body).encode()


def index(*entries: dict[str, Any]) -> Index:
    found = parse(index_document(*entries), "here/model:1")
    assert isinstance(found, Index)
    return found
