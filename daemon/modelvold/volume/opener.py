"""The opener: from a reference to a volume. Asks the registry for documents only, never for weights.

A content is taken from the shared place only for a source that has answered for its blob with its own credentials; otherwise the
source gets a content of its own (rule 6).
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelvold.errors import Exhausted, Failure, Malformed, Mismatch, Unreachable
from modelvold.layer.cut import cut
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Toc
from modelvold.oci import document, modelpack
from modelvold.oci.digest import Digest
from modelvold.oci.document import Index, Manifest
from modelvold.oci.media_type import Compression, Reading
from modelvold.oci.modelpack import ModelLayer
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import parse_pinned_tag
from modelvold.store.catalog import VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store, sync_folder
from modelvold.volume.erofs import write_image
from modelvold.volume.tree import merge

log = logging.getLogger(__name__)

#: A Prepare waits for the opener: a registry slow to answer for a shared blob costs a second, then it gets a content of its own.
_PATIENCE_TO_SHARE = 1.0


class Registry(Protocol):
    """What the opener asks of the registry's client."""

    def resolve(self, reference: Reference, /, *, remembered: bool = False) -> Manifest | Index: ...

    def has_blob(self, repository: Repository, digest: Digest, timeout: float | None = None) -> bool: ...


@dataclass(slots=True)
class _Asking:
    """One opening's questions to its registry: `is_in_vain` once one was not answered, so that all cost one patience."""

    repository: Repository
    is_in_vain: bool = False


class Opener:
    """`architecture` is this node's, in OCI's words."""

    def __init__(self, store: Store, registry: Registry, architecture: str) -> None:
        self._store = store
        self._registry = registry
        self._architecture = architecture

    def resolve(self, reference: Reference) -> Manifest:
        """The manifest of the model that `reference` names, through an index where there is one."""
        pinned = parse_pinned_tag(reference.tag or "")
        asked = reference.at(pinned) if pinned else reference
        found = self._registry.resolve(asked, remembered=True)
        if isinstance(found, Index):
            chosen = modelpack.select(found, str(reference), self._architecture)
            found = self._registry.resolve(reference.at(chosen.digest), remembered=True)
        if isinstance(found, Index):
            raise Malformed(f"{reference}: an index in an index", "ask for one of its manifests by digest")
        return found

    def document(self, repository: Repository, original: Digest) -> Manifest:
        """The manifest of a digest: the one the façade kept, else the registry's."""
        kept = self._store.catalog.document_of(repository, original)
        reference = Reference(repository, digest=original)
        found = (
            document.parse(kept, str(reference))
            if kept is not None
            else self._registry.resolve(reference, remembered=True)
        )
        if isinstance(found, Index):
            raise Malformed(f"{reference}: an index, not a model's manifest")
        return found

    def open(self, repository: Repository, manifest: Manifest, reference: str) -> VolumeRow:
        """The volume of `manifest` as `repository` serves it: its contents cut and in the catalog, its image written.

        Raises NotAModel, Malformed, Exhausted, Failing; Mismatch where a layer is in quarantine.
        """
        name = volume_id(repository, manifest.digest)
        layers = modelpack.read(manifest, reference).layers
        for layer in layers:
            _check_raw(layer, reference)
        tocs = [toc_of_raw(layer.path, layer.descriptor.size, layer.mode, layer.mtime) for layer in layers]
        tree = merge(tocs)
        asking = _Asking(repository)
        contents = [self._content(asking, layer, toc, reference) for layer, toc in zip(layers, tocs, strict=True)]
        extents = [[segment.extent for segment in content.segments] for content in contents]
        image = write_image(tree, extents, identity=str(repository).encode() + manifest.digest.hex.encode())
        self._write(self.image_path(name), image.bytes)
        size = sum(content.length for content in contents)
        row = VolumeRow(
            name,
            repository,
            manifest.digest,
            reference,
            manifest.document,
            image.uuid,
            size,
            tuple(content.id for content in contents),
        )
        self._store.catalog.add_volume(row)
        log.info("open volume=%s reference=%s bytes=%d segments=%d", name, reference, size, image.devices)
        return row

    def image_path(self, volume: str) -> Path:
        return self._store.root / "volumes" / f"{volume}.erofs"

    def _content(self, asking: _Asking, layer: ModelLayer, toc: Toc, reference: str) -> Content:
        digest, source = layer.descriptor.digest, str(asking.repository)
        shared = self._store.find(digest, Reading.RAW, "")
        own = self._store.find(digest, Reading.RAW, source)
        found = shared if shared and self._may_share(shared, asking) else own
        if found is None:
            return self._store.add(digest, Reading.RAW, source, toc.length, cut(toc))
        if found.length != toc.length:
            raise Malformed(
                f"{reference}: layer {layer.path!r} is {toc.length} bytes by this manifest, {found.length} by another",
                "one of the two manifests lies; ask their producers",
            )
        if found.state == "quarantined":
            raise Mismatch(
                f"{reference}: layer {layer.path!r} ({digest}) is in quarantine: {found.reason}",
                "remove the model with `modelvold rm`, mend it at the registry, pull again",
            )
        return found

    def _may_share(self, content: Content, asking: _Asking) -> bool:
        source = str(asking.repository)
        if self._store.catalog.has_answered(content.id, source):
            return True
        if asking.is_in_vain:
            return False
        try:
            has_answered = self._registry.has_blob(asking.repository, content.digest, _PATIENCE_TO_SHARE)
        except Failure as failure:
            asking.is_in_vain = isinstance(failure, Unreachable)
            log.info("share content=%s source=%s refused=%r", content.digest, source, str(failure))
            return False
        if has_answered:
            self._store.catalog.answered(content.id, source)
        return has_answered

    def _write(self, path: Path, content: bytes) -> None:
        """Aside, synced, then in place: a crash leaves an old image or a new one."""
        aside = path.with_suffix(".new")
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise Exhausted(f"volume image {path}: {error.strerror}", "make room in the store") from error


def volume_id(repository: Repository, manifest: Digest) -> str:
    """Two sources of one manifest get two volumes: their unverified bytes must not meet."""
    return f"{manifest.hex[:32]}-{hashlib.sha256(str(repository).encode()).hexdigest()[:8]}"


def _check_raw(layer: ModelLayer, reference: str) -> None:
    if layer.archive is not Reading.RAW or layer.compression is not Compression.NONE:
        raise Malformed(
            f"{reference}: layer {layer.path!r} is of type {layer.descriptor.media_type}; this version mounts raw layers",
            "pack the model with raw layers (`modelvold pack`)",
        )
