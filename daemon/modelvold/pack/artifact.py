"""A model's files → a ModelPack artifact: its config and its manifest, as bytes (model-spec v0.0.7,
`docs/spec.md`). Pure.

Every file is one raw layer, so a layer's digest is the file's and its diffID too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelvold.errors import InvalidInput
from modelvold.oci.digest import Digest
from modelvold.oci.document import LARGEST_DOCUMENT, MANIFEST, MOST_LAYERS, to_json
from modelvold.oci.media_type import Role
from modelvold.pack.classify import layer_order
from modelvold.pack.describe import Description

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_REGULAR_FILE = 0
_REMEDY = "pack fewer files, or put small ones together in one archive"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `path` as in `oci.modelpack.safe_path`; `size` in bytes, `mtime` in nanoseconds since 1970."""

    path: str
    role: Role
    digest: Digest
    size: int
    mode: int
    mtime: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """Two documents and what they name. `entries` are in the manifest's order."""

    entries: tuple[Entry, ...]
    config: bytes = field(repr=False)
    manifest: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of the layers together."""
        return sum(entry.size for entry in self.entries)


def build(entries: Sequence[Entry], description: Description) -> Artifact:
    """The artifact of `entries`, whose paths differ. Raises InvalidInput for no files, or more than a manifest may
    hold.
    """
    if not entries:
        raise InvalidInput("nothing to pack: the folder has no files", "name the folder that holds the model's files")
    if len(entries) > MOST_LAYERS:
        raise InvalidInput(
            f"{len(entries)} files to pack, more than the {MOST_LAYERS} layers an artifact may have", _REMEDY
        )
    ordered = tuple(sorted(entries, key=lambda entry: layer_order(entry.role, entry.path)))
    config = to_json(_config(ordered, description))
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [_layer(entry) for entry in ordered],
        },
    )
    if len(manifest) > LARGEST_DOCUMENT:
        raise InvalidInput(
            f"{len(ordered)} files need a manifest of {len(manifest)} bytes, more than a registry must take"
            f" ({LARGEST_DOCUMENT})",
            _REMEDY,
        )
    return Artifact(ordered, config, manifest)


def rfc3339(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as UTC, with as many decimals as are needed and none lost."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
    decimals = f"{fraction:09d}".rstrip("0")
    return f"{whole}.{decimals}Z" if decimals else f"{whole}Z"


def _config(entries: Sequence[Entry], description: Description) -> dict[str, Any]:
    return {
        "descriptor": _known(createdAt=description.created, family=description.family, name=description.name),
        "modelfs": {"type": "layers", "diffIds": [str(entry.digest) for entry in entries]},
        "config": _known(
            architecture=description.architecture,
            format=description.format,
            precision=description.precision,
            quantization=description.quantization,
        ),
    }


def _known(**fields: str) -> dict[str, str]:
    return {key: text for key, text in fields.items() if text}


def _layer(entry: Entry) -> dict[str, Any]:
    # Owners are the packer's affair and mean nobody on the node that mounts: root, as it will be shown.
    metadata = {
        "name": entry.path.rpartition("/")[2],
        "mode": entry.mode & 0o777,
        "uid": 0,
        "gid": 0,
        "size": entry.size,
        "mtime": rfc3339(entry.mtime),
        "typeflag": _REGULAR_FILE,
    }
    return {
        "mediaType": f"application/vnd.cncf.model.{entry.role.value}.v1.raw",
        "digest": str(entry.digest),
        "size": entry.size,
        "annotations": {
            "org.cncf.model.file.metadata+json": to_json(metadata).decode(),
            "org.cncf.model.filepath": entry.path,
        },
    }
