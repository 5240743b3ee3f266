"""The opener: from a reference to a volume. Asks the registry for documents and the headers of tars, never for weights.

A content is taken from the shared place only for a source that has answered for its blob with its own credentials; otherwise the
source gets a content of its own (rule 6).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from modelvold import points
from modelvold.errors import Exhausted, Failure, Malformed, Mismatch, Unreachable
from modelvold.layer import toc as toc_codec
from modelvold.layer.cut import cut
from modelvold.layer.naming import named
from modelvold.layer.raw import toc_of_raw
from modelvold.layer.toc import Toc
from modelvold.linux.files import sync_folder
from modelvold.oci import document, modelpack
from modelvold.oci.digest import Digest
from modelvold.oci.document import Index, Manifest
from modelvold.oci.media_type import Compression, Reading
from modelvold.oci.modelpack import ModelLayer
from modelvold.oci.reference import Reference, Repository
from modelvold.oci.synthetic import parse_pinned_tag
from modelvold.points import Point
from modelvold.store.catalog import NewContent, VolumeRow
from modelvold.store.content import Content
from modelvold.store.store import Store
from modelvold.volume.erofs import write_image
from modelvold.volume.headers import Bound, Ranges, read_headers
from modelvold.volume.spool import Spool
from modelvold.volume.tree import Tree, merge

log = logging.getLogger(__name__)

#: A Prepare waits for the opener: a registry slow to answer for a shared blob costs a second, then it gets a content of its own.
_PATIENCE_TO_SHARE = 1.0
#: Layers of a volume whose headers are read at once: each is a connection and half a MiB.
_READERS = 8


class Registry(Ranges, Protocol):
    """What the opener asks of the registry's client."""

    def resolve(self, reference: Reference, /, *, remembered: bool = False) -> Manifest | Index: ...

    def has_blob(self, repository: Repository, digest: Digest, timeout: float | None = None) -> bool: ...


@dataclass(slots=True)
class _Asking:
    """One opening's questions to its registry, each asked once: `is_in_vain` once one was not answered, so that all cost one
    patience."""

    repository: Repository
    is_in_vain: bool = False
    refused: set[int] = field(default_factory=set)  # contents


class Opener:
    """`architecture` is this node's, in OCI's words."""

    def __init__(self, store: Store, registry: Registry, architecture: str) -> None:
        self._store = store
        self._registry = registry
        self._architecture = architecture
        #: Held from when contents are found or made until a volume names them, and while one is removed with what it alone names.
        #: Over the disk, never over the network.
        self.settling = threading.Lock()
        self._lock = threading.Lock()  # guards _openings and _is_closing
        self._openings: set[threading.Event] = set()  # set, each ends an opening's reading of headers
        self._is_closing = False

    def close(self) -> None:
        """Openings under way end soon, with Unreachable, and so does every later one that has headers to read."""
        with self._lock:
            self._is_closing = True
            for stopping in self._openings:
                stopping.set()

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
        kept = self._store.given.document_of(repository, original)
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

        Raises NotAModel, Malformed, Exhausted, Failing; Mismatch where a layer is in quarantine. Then nothing of it stays.
        """
        with _about(reference), Spool(self._store.root) as spool:
            layers = modelpack.read(manifest, reference).layers
            for layer in layers:
                _check_uncompressed(layer)
            asking = _Asking(repository)
            tocs = self._read_tocs(asking, layers, spool)
            with self.settling, ExitStack() as undoing:
                contents, tocs = self._contents(asking, layers, tocs, spool, undoing)
                tree = merge([named(toc, layer) for toc, layer in zip(tocs, layers, strict=True)])
                row = self._record(repository, manifest, reference, contents=contents, tree=tree, undoing=undoing)
                undoing.pop_all()
        return row

    def _record(
        self,
        repository: Repository,
        manifest: Manifest,
        reference: str,
        *,
        contents: Sequence[Content],
        tree: Tree,
        undoing: ExitStack,
    ) -> VolumeRow:
        name = volume_id(repository, manifest.digest)
        extents = [[segment.extent for segment in content.segments] for content in contents]
        image = write_image(tree, extents, identity=str(repository).encode() + manifest.digest.hex.encode())
        undoing.callback(self.image_path(name).unlink, missing_ok=True)
        self._write(self.image_path(name), image.bytes)
        points.at(Point.VOLUME_IMAGE_WRITTEN)
        row = VolumeRow(
            name,
            repository,
            manifest.digest,
            reference,
            manifest.document,
            image.uuid,
            sum(content.length for content in contents),
            tuple(content.id for content in contents),
            used=int(time.time()),
        )
        self._store.catalog.add_volume(row)
        points.at(Point.VOLUME_ADDED)
        log.info("open volume=%s reference=%s bytes=%d segments=%d", name, reference, row.size, image.devices)
        return row

    def sweep(self, volumes: set[str]) -> None:
        """Removes images of other volumes than these: an end in the middle of an opening or a removal has left them."""
        folder = self._store.root / "volumes"
        for path in [*folder.glob("*.erofs"), *folder.glob("*.new")]:
            if path.is_file() and not (path.suffix == ".erofs" and path.stem in volumes):
                log.warning("sweep image=%s reason='no volume'", path)
                path.unlink()

    def image_path(self, volume: str) -> Path:
        return self._store.root / "volumes" / f"{volume}.erofs"

    def tree(self, volume: str) -> Tree:
        """The tree of a volume in the catalog. Raises NotFound."""
        row = self._store.catalog.volume(volume)
        manifest = document.parse(row.document, row.reference)
        assert isinstance(manifest, Manifest)  # noqa: S101 — nothing else becomes a volume
        layers = modelpack.read(manifest, row.reference).layers
        contents = [self._store.content(number) for number in row.contents]
        tocs = (self._known_toc(layer, content) for layer, content in zip(layers, contents, strict=True))
        return merge([named(toc, layer) for toc, layer in zip(tocs, layers, strict=True)])

    def _read_tocs(self, asking: _Asking, layers: Sequence[ModelLayer], spool: Spool) -> list[Toc]:
        """Of raw layers from their descriptors, of tars that are here from the catalog, of others from the registry, several
        at once; where one fails, the others are given up. An error names the layer."""
        reading: dict[Digest, Future[Toc]] = {}
        found: list[Callable[[], Toc]] = []
        bound = Bound()
        with self._stopping() as stopping, ThreadPoolExecutor(_READERS, thread_name_prefix="headers") as readers:
            try:
                for layer in layers:
                    content = self._find(asking, layer)
                    if layer.archive is Reading.RAW or content is not None:
                        found.append(partial(self._known_toc, layer, content))
                        continue
                    descriptor = layer.descriptor
                    if descriptor.digest not in reading:
                        reading[descriptor.digest] = readers.submit(
                            partial(read_headers, bound=bound, stopping=stopping),
                            self._registry,
                            asking.repository,
                            descriptor,
                            spool,
                        )
                    found.append(partial(_named_failure, reading[descriptor.digest], layer))
                return [toc() for toc in found]
            finally:
                stopping.set()
                readers.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _stopping(self) -> Iterator[threading.Event]:
        """An event that is set when the daemon ends."""
        stopping = threading.Event()
        with self._lock:
            if self._is_closing:
                stopping.set()
            self._openings.add(stopping)
        try:
            yield stopping
        finally:
            with self._lock:
                self._openings.discard(stopping)

    def _known_toc(self, layer: ModelLayer, content: Content | None) -> Toc:
        if layer.archive is Reading.RAW or content is None:
            return toc_of_raw(layer.path, layer.descriptor.size, layer.mode, layer.mtime)
        kept = self._store.catalog.toc(content.id)
        if kept is None:
            raise Malformed(
                f"layer {content.digest}: the store has lost its table of contents", "remove the model, pull again"
            )
        return toc_codec.decode(kept)

    def _contents(
        self, asking: _Asking, layers: Sequence[ModelLayer], tocs: Sequence[Toc], spool: Spool, undoing: ExitStack
    ) -> tuple[list[Content], list[Toc]]:
        """The layers' contents, made where they are new, with what may be shown of each: its own toc alone, and one that another
        opening has brought meanwhile has that one's. Nothing is asked of the registry here."""
        found = [self._find(asking, layer, may_ask=False) for layer in layers]
        first: dict[
            tuple[Digest, Reading], Toc
        ] = {}  # of two layers that are one tar one toc is kept, and both have that one's
        shown = [
            self._known_toc(layer, content)
            if content is not None
            else toc
            if layer.archive is Reading.RAW
            else first.setdefault(_key(layer), toc)
            for layer, toc, content in zip(layers, tocs, found, strict=True)
        ]
        lacking = [(layer, toc) for layer, toc, content in zip(layers, tocs, found, strict=True) if content is None]
        new = _new_contents(lacking, str(asking.repository))
        made = dict(zip(new, self._store.add(list(new.values()), spool.pieces), strict=True)) if new else {}
        for content in made.values():
            undoing.callback(self._store.remove, content)
        return [content or made[_key(layer)] for layer, content in zip(layers, found, strict=True)], shown

    def _find(self, asking: _Asking, layer: ModelLayer, *, may_ask: bool = True) -> Content | None:
        """What is here already and may be used. Raises Malformed and Mismatch where it may not be."""
        digest = layer.descriptor.digest
        shared = self._store.find(digest, layer.archive, "")
        own = self._store.find(digest, layer.archive, str(asking.repository))
        is_shared = shared is not None and shared.is_verified and self._may_share(shared, asking, may_ask=may_ask)
        found = shared if is_shared else own
        if found is None:
            return None
        _check_size(layer, found.length, "another")
        if found.state == "quarantined":
            raise Mismatch(
                f"{_called(layer)} ({digest}) is in quarantine: {found.reason}",
                "remove the model with `modelvold rm`, mend it at the registry, pull again",
            )
        return found

    def _may_share(self, content: Content, asking: _Asking, *, may_ask: bool) -> bool:
        source = str(asking.repository)
        if self._store.catalog.has_answered(content.id, source):
            return True
        if not may_ask or asking.is_in_vain or content.id in asking.refused:
            return False
        asking.refused.add(content.id)
        try:
            has_answered = self._registry.has_blob(asking.repository, content.digest, _PATIENCE_TO_SHARE)
        except Failure as failure:
            asking.is_in_vain = isinstance(failure, Unreachable)
            log.info("share content=%s source=%s refused=%r", content.digest, source, str(failure))
            return False
        if has_answered:
            self._store.catalog.answered(content.id, source)
        return has_answered

    def _write(self, path: Path, content: memoryview) -> None:
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


@contextmanager
def _about(reference: str) -> Iterator[None]:
    """What is wrong with a model names it."""
    try:
        yield
    except (Malformed, Exhausted, Unreachable) as failure:
        if failure.message.startswith(reference):
            raise
        raise type(failure)(f"{reference}: {failure.message}", failure.remedy) from failure


def _new_contents(layers: Sequence[tuple[ModelLayer, Toc]], source: str) -> dict[tuple[Digest, Reading], NewContent]:
    """One for each blob, however many layers it is; their sizes agree. Raises Malformed."""
    new: dict[tuple[Digest, Reading], NewContent] = {}
    for layer, toc in layers:
        key = _key(layer)
        if key in new:
            _check_size(layer, new[key].length, "another layer of it")
            continue
        headers = None if layer.archive is Reading.RAW else toc_codec.encode(toc)
        new[key] = NewContent(*key, source, toc.length, cut(toc), headers)
    return new


def _check_size(layer: ModelLayer, length: int, where: str) -> None:
    if layer.descriptor.size != length:
        raise Malformed(
            f"{_called(layer)} is {layer.descriptor.size} bytes by this manifest, {length} by {where}",
            "one of the two lies; ask the producers",
        )


def _key(layer: ModelLayer) -> tuple[Digest, Reading]:
    return layer.descriptor.digest, layer.archive


def _called(layer: ModelLayer) -> str:
    return f"layer {layer.path!r}" if layer.path else f"layer {layer.descriptor.digest.short}"


def _check_uncompressed(layer: ModelLayer) -> None:
    if layer.compression is not Compression.NONE:
        raise Malformed(
            f"{_called(layer)} is of type {layer.descriptor.media_type}; this version mounts raw layers and uncompressed tars",
            "pack the model with raw layers (`modelvold pack`)",
        )


def _named_failure(reading: Future[Toc], layer: ModelLayer) -> Toc:
    try:
        return reading.result()
    except (Malformed, Exhausted) as failure:
        raise type(failure)(f"{_called(layer)}: {failure.message}", failure.remedy) from failure
