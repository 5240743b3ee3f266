"""Layer media types: what a layer is for, and how its bytes are read.

ModelPack (model-spec `docs/spec.md`, "Layer media types"), under its present name `vnd.cncf` and its former one
`vnd.cnai`, and the file-system layers of OCI (image-spec `media-types.md`) and Docker. A type that is not in the
table is an error: a layer read wrongly would be a wrong byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from modelvold.errors import Malformed


class Reading(Enum):
    """How a blob's bytes become content: as they are, or as a tar whose members are the files."""

    RAW = "raw"
    TAR = "tar"


class Role(Enum):
    """What a layer is for. `FILESYSTEM` is a layer of an ordinary image."""

    WEIGHT = "weight"
    WEIGHT_CONFIG = "weight.config"
    DOC = "doc"
    CODE = "code"
    DATASET = "dataset"
    FILESYSTEM = "filesystem"


class Compression(Enum):
    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class LayerType:
    role: Role
    archive: Reading
    compression: Compression = Compression.NONE


_MODEL = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(weight|weight\.config|doc|code|dataset)\.v1\.(raw|tar)(?:(?<=tar)\+(gzip|zstd))?"
)
_FILESYSTEM = re.compile(
    r"application/vnd\.(?:"
    r"oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.(gzip|zstd))?"
    r")"
)


def layer_type(media_type: str) -> LayerType:
    """What `media_type` says of a layer. Raises Malformed for one that is not known."""
    model = _MODEL.fullmatch(media_type)
    if model is not None:
        role, archive, compression = model.groups()
        return LayerType(Role(role), Reading(archive), Compression(compression or "none"))
    filesystem = _FILESYSTEM.fullmatch(media_type)
    if filesystem is not None:
        return LayerType(
            Role.FILESYSTEM, Reading.TAR, Compression(filesystem.group(1) or filesystem.group(2) or "none")
        )
    raise Malformed(
        f"layer type {media_type[:200]!r} is not known",
        "ask the producer to pack it as ModelPack (application/vnd.cncf.model.….v1.raw or .tar)",
    )


def is_model_layer(media_type: str) -> bool:
    """Whether `media_type` is one of ModelPack's layer types, present or former."""
    return _MODEL.fullmatch(media_type) is not None
