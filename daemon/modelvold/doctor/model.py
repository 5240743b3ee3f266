"""A model by its reference: whether its registry gives it to us, and how it would be mounted here. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelvold.doctor.hosts_files import snippet
from modelvold.doctor.line import Group, Level, Line, copied
from modelvold.errors import Failure, Malformed, NotAModel
from modelvold.mount.findings import FUSE, LAZY
from modelvold.oci import modelpack
from modelvold.oci.document import Manifest
from modelvold.oci.media_type import Compression
from modelvold.oci.modelpack import Model, ModelLayer
from modelvold.oci.reference import Reference
from modelvold.oci.synthetic import parse_pinned_tag, pinned_tag
from modelvold.store.amount import size

GROUP = Group("model")
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Route:
    """Whether containerd asks the façade for images of the model's registry (`leads`), by `hosts_file`. `server` is the registry's
    own URL, `facade` the listener's host:port."""

    leads: bool
    server: str
    facade: str
    hosts_file: Path


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine brings: `backend`, empty where nothing can be mounted; `free` bytes in the store; containerd's route to the
    model, None where there is no containerd."""

    backend: str
    free: int
    route: Route | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking for `reference`: its `manifest`, or the `failure`. `credentials` says who was believed or refused;
    `last_byte` why a byte of its largest layer could not be read, None where it could."""

    reference: Reference
    manifest: Manifest | None
    failure: Failure | None
    credentials: str = ""
    last_byte: Failure | None = None


def check(answer: Answer, here: Here) -> Iterator[Line]:
    what = str(answer.reference)
    if answer.manifest is None:
        failure = answer.failure or Failure(f"{what}: no answer")
        said = f"{failure.message}; {answer.credentials}" if answer.credentials else failure.message
        yield GROUP.bad("registry", said, failure.remedy or "ask whoever runs the registry")
        return
    yield GROUP.ok("registry", f"{answer.reference.repository.host} answers, {answer.credentials}")
    try:
        model = modelpack.read(answer.manifest, what)
    except (NotAModel, Malformed) as failure:
        yield GROUP.bad("model", failure.message, failure.remedy or "ask the producer to pack it again")
        return
    tag = "" if _is_pinned(answer.reference) else f":{answer.reference.tag}"
    name = f"{answer.reference.repository}{tag}"
    yield GROUP.ok("model", f"{name}, {size(model.size)}, {answer.manifest.digest}")
    if answer.last_byte:
        yield GROUP.bad("bytes", answer.last_byte.message, answer.last_byte.remedy or "ask whoever runs the registry")
    elif model.size:
        yield GROUP.ok("bytes", "the last one of the largest layer was read alone")
    layers = _layers(model)
    yield layers
    if layers.level is not Level.BAD:
        yield _mounted(model, here)
    yield from _by_containerd(answer, here)


def unreadable(text: str, failure: Failure) -> Line:
    """For what is no reference."""
    return GROUP.bad("reference", failure.message, failure.remedy or f"write {text!r} as host[:port]/repository[:tag]")


def largest(manifest: Manifest) -> ModelLayer | None:
    """The largest layer that has bytes; None where there is none, or no model."""
    try:
        layers = modelpack.read(manifest, "").layers
    except Failure:
        return None
    return max((each for each in layers if each.descriptor.size), key=lambda each: each.descriptor.size, default=None)


def _layers(model: Model) -> Line:
    counts = Counter(_kind(layer) for layer in model.layers)
    seen = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    packed = [layer for layer in model.layers if layer.compression is not Compression.NONE]
    if not packed:
        return GROUP.ok("layers", f"{seen}: all can be mounted")
    names = ", ".join(layer.path or layer.descriptor.digest.short for layer in packed[:_MOST_NAMED])
    more = f" and {len(packed) - _MOST_NAMED} more" if len(packed) > _MOST_NAMED else ""
    return GROUP.bad(
        "layers",
        f"{seen}: this version does not mount compressed layers ({names}{more})",
        "pack the model with raw layers, which a model's weights hardly get larger by:\n"
        + copied("modelvold pack DIR -t REF --push"),
    )


def _kind(layer: ModelLayer) -> str:
    packed = "" if layer.compression is Compression.NONE else f"+{layer.compression.value}"
    return f"{layer.role.value} ({layer.archive.value}{packed})"


def _mounted(model: Model, here: Here) -> Line:
    if not here.backend:
        return GROUP.bad("mounting", "not possible on this machine", "see above, kernel and machine")
    when = "at once, its bytes come when they are read" if here.backend in {LAZY, FUSE} else "when all of it is here"
    seen = f"by the backend {here.backend}: {when}"
    if model.size > here.free:
        lacking = f"{seen}; {size(here.free)} free in the store, and the model has {size(model.size)}"
        mend = "make room, or put the store on a larger disk; what is there of it already does not count:\n"
        return GROUP.warn("mounting", lacking, mend + copied("modelvold status\nmodelvold rm REF"))
    return GROUP.ok("mounting", seen)


def _by_containerd(answer: Answer, here: Here) -> Iterator[Line]:
    reference, manifest = answer.reference, answer.manifest
    route = here.route
    if route is None or manifest is None:
        return
    what = "through containerd"
    if not route.leads:
        seen = f"{reference.repository.host} does not lead to the façade: pods would get an empty folder"
        yield GROUP.warn(what, seen, snippet(route.hosts_file, route.server, route.facade))
    elif reference.digest:
        name = f"{reference.repository}:{pinned_tag(manifest.digest)}"
        seen = "containerd cannot be asked for a model's own digest, since what it sees is an image"
        yield GROUP.warn(what, seen, f"in the pod write, which means the same:\n{copied(f'reference: {name}')}")
    else:
        yield GROUP.ok(what, f"{reference.repository.host} leads to the façade")


def _is_pinned(reference: Reference) -> bool:
    return reference.digest is not None or parse_pinned_tag(reference.tag or "") is not None
