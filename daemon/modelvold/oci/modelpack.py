"""ModelPack: a manifest → a model's layers, each with its path, mode and time (model-spec `docs/spec.md`,
`docs/annotations.md`).

Strict about what could harm or mislead (paths, sizes, two files of one name, types we do not know), lenient about
what packers are known to get wrong: unknown or broken metadata, the former `vnd.cnai` names, a `../` in front of a
path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelvold.errors import Malformed, NotAModel, NotFound
from modelvold.oci.document import Descriptor, Index, Manifest
from modelvold.oci.file_metadata import FileMetadata, read_metadata
from modelvold.oci.media_type import Compression, LayerType, Reading, Role, is_model_layer, layer_type

MODEL_MANIFEST_TYPES = frozenset(
    {"application/vnd.cncf.model.manifest.v1+json", "application/vnd.cnai.model.manifest.v1+json"},
)
MODEL_CONFIG_TYPES = frozenset(
    {"application/vnd.cncf.model.config.v1+json", "application/vnd.cnai.model.config.v1+json"},
)

#: In the order in which they are asked: the present name, the former one, the one that every artifact tool writes.
_NAMES = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")

# Linux: NAME_MAX, PATH_MAX without its terminating zero. The depth bounds what walkers of the tree must keep open.
_LONGEST_COMPONENT = 255
_LONGEST_PATH = 4095
_DEEPEST = 256


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """One layer. `path` is safe (see `safe_path`) and the file's for raw layers; for tar layers it is what the packer
    wrote, or empty, and names no file. `mode` has permission bits only; `mtime` is in nanoseconds since 1970.
    `said_size` is the regular file's size in bytes as the metadata has it, None where it says none: a claim."""

    descriptor: Descriptor
    role: Role
    archive: Reading
    compression: Compression
    path: str
    mode: int
    mtime: int
    said_size: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """`layers` in the manifest's order, without repetitions of a layer."""

    manifest: Manifest
    layers: tuple[ModelLayer, ...]

    @property
    def size(self) -> int:
        """What the registry holds of it, in bytes."""
        return sum(layer.descriptor.size for layer in self.layers)


def is_model(manifest: Manifest) -> bool:
    """Whether it says of itself, by artifact type, config type or all its layers' types, that it is ModelPack."""
    return (
        manifest.artifact_type in MODEL_MANIFEST_TYPES
        or manifest.config.media_type in MODEL_CONFIG_TYPES
        or (bool(manifest.layers) and all(is_model_layer(layer.media_type) for layer in manifest.layers))
    )


def read(manifest: Manifest, what: str) -> Model:
    """The model in `manifest`; `what` names it in errors.

    Raises NotAModel when it is not ModelPack, Malformed when it is but cannot be shown as it says: no layers, an
    unknown layer type, an unsafe or missing path, a size that contradicts itself, two layers for one path.
    """
    if not is_model(manifest):
        raise NotAModel(
            f"{what}: not a ModelPack model (artifact type {_kind(manifest)[:200]!r})",
            "check the reference, or pack the model as ModelPack",
        )
    if not manifest.layers:
        raise Malformed(f"{what}: the model has no layers", "ask the producer to pack it again")
    layers = (_layer(descriptor, f"{what}: layer {n}") for n, descriptor in enumerate(manifest.layers))
    return Model(manifest, _without_repetitions(tuple(layers), what))


def select(index: Index, what: str, architecture: str) -> Descriptor:
    """The manifest in `index` that this node uses: the one for linux/`architecture` (Go's name of it), else the only
    ModelPack manifest without a platform, else the only manifest at all. Raises NotFound, listing what there is."""
    fitting = [
        entry
        for entry in index.manifests
        if entry.platform and (entry.platform.os, entry.platform.architecture) == ("linux", architecture)
    ]
    if fitting:
        return next((entry for entry in fitting if entry.artifact_type in MODEL_MANIFEST_TYPES), fitting[0])
    models = [e for e in index.manifests if e.artifact_type in MODEL_MANIFEST_TYPES and not _names_platform(e)]
    if len(models) == 1:
        return models[0]
    if len(index.manifests) == 1:
        return index.manifests[0]
    listed = ", ".join(f"{e.digest} ({e.platform or 'no platform'})" for e in index.manifests[:20]) or "none"
    raise NotFound(
        f"{what}: no manifest for linux/{architecture}, and no single ModelPack manifest without a platform,"
        f" among: {listed}",
        "name one of them by its digest",
    )


def safe_path(text: str, errors: str = "strict") -> str:
    """`text` as a path below the volume: relative, `/` between components none of which is empty, `.` or `..`.

    Leading `./` and `../` are dropped, because packers write them for files given by absolute path; `.` and doubled
    slashes inside mean nothing and are dropped too. Raises Malformed for everything else. `errors` is how `text`
    becomes bytes (PEP 383): `surrogateescape` where it came from a tar, whose names are bytes of any kind.
    """
    parts = text.split("/")
    parts = parts[next((n for n, part in enumerate(parts) if part not in {".", ".."}), len(parts)) :]
    if not any(parts):
        raise Malformed(f"path {text[:300]!r} names nothing")
    if not parts[0]:
        raise Malformed(f"path {text[:300]!r} is absolute")
    if parts[-1] in {"", "."}:
        raise Malformed(f"path {text[:300]!r} names a folder")
    components = [part for part in parts if part not in {"", "."}]
    _check_components(components, text, errors)
    return "/".join(components)


def _check_components(components: list[str], text: str, errors: str) -> None:
    cause = ""
    try:
        encoded = [component.encode("utf-8", errors) for component in components]
    except UnicodeEncodeError:
        raise Malformed(f"path {text[:300]!r} is not valid Unicode") from None
    if ".." in components:
        cause = "contains '..'"
    elif "\0" in text:
        cause = "contains NUL"
    elif max(map(len, encoded)) > _LONGEST_COMPONENT:
        cause = f"has a component longer than {_LONGEST_COMPONENT} bytes"
    elif sum(map(len, encoded)) + len(encoded) - 1 > _LONGEST_PATH:
        cause = f"is longer than {_LONGEST_PATH} bytes"
    elif len(components) > _DEEPEST:
        cause = f"is more than {_DEEPEST} folders deep"
    if cause:
        raise Malformed(f"path {text[:300]!r} {cause}")


def _kind(manifest: Manifest) -> str:
    return manifest.artifact_type or manifest.config.media_type or "none"


def _names_platform(entry: Descriptor) -> bool:
    return entry.platform is not None and bool(entry.platform.os or entry.platform.architecture)


def _layer(descriptor: Descriptor, what: str) -> ModelLayer:
    name = _name(descriptor.annotations)
    what = f"{what} ({name[:300]!r}, {descriptor.digest.short})"
    try:
        kind = layer_type(descriptor.media_type)
        path = safe_path(name) if kind.archive is Reading.RAW else _tar_path(name)
    except Malformed as error:
        raise Malformed(f"{what}: {error.message}", error.remedy or "ask the producer to pack it again") from None
    metadata = read_metadata(descriptor.annotations)
    _check_metadata(metadata, kind, descriptor, what)
    said_size = metadata.size if metadata.is_regular else None
    return ModelLayer(
        descriptor, kind.role, kind.archive, kind.compression, path, metadata.mode, metadata.mtime, said_size
    )


def _tar_path(name: str) -> str:
    """What a tar's annotation names may be a folder, or the root, or nothing."""
    parts = name.split("/")
    end = len(parts)
    while end > 1 and parts[end - 1] in {"", "."}:
        end -= 1
    path = "/".join(parts[:end])
    return "" if path in {"", ".", ".."} else safe_path(path)


def _name(annotations: Mapping[str, str]) -> str:
    return next((annotations[key] for key in _NAMES if annotations.get(key)), "")


def _check_metadata(metadata: FileMetadata, kind: LayerType, descriptor: Descriptor, what: str) -> None:
    """A raw layer is one regular file of exactly the blob's size; of a tar the metadata may say what it likes."""
    if kind.archive is not Reading.RAW:
        return
    if not metadata.is_regular:
        raise Malformed(f"{what}: a raw layer that calls itself no regular file", "ask the producer to pack it again")
    if metadata.size is not None and metadata.size != descriptor.size:
        raise Malformed(
            f"{what}: the size lies: {metadata.size} bytes by its metadata, {descriptor.size} by its descriptor",
            "ask the producer to pack it again",
        )


def _without_repetitions(layers: tuple[ModelLayer, ...], what: str) -> tuple[ModelLayer, ...]:
    """Drops what is there twice with the same bytes. Raises Malformed for two raw layers with one path and other
    bytes."""
    seen: dict[tuple[Reading, str], tuple[int, ModelLayer]] = {}
    kept = []
    for number, layer in enumerate(layers):
        # Where a tar's files go is said inside it, so tars are told apart by their bytes alone.
        name = layer.path if layer.archive is Reading.RAW else str(layer.descriptor.digest)
        earlier, first = seen.setdefault((layer.archive, name), (number, layer))
        if earlier == number:
            kept.append(layer)
        elif first.descriptor.digest != layer.descriptor.digest:
            raise Malformed(
                f"{what}: layers {earlier} ({first.descriptor.digest.short}) and {number}"
                f" ({layer.descriptor.digest.short}) have one path {layer.path!r}",
                "ask the producer to pack it again",
            )
    return tuple(kept)
