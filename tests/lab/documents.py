"""The documents we push: ModelPack manifests as packers write them, and the image of our test containers. Pure.

Plain dicts on purpose: a test that wants a wrong document takes a right one and spoils it.
"""

from __future__ import annotations

import io
import json
import platform
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"

#: Linked to busybox in /bin of our test images.
_APPLETS = frozenset(
    re.findall(
        r"\w+",
        "sh cat cp cut date dd df echo env false find grep head id kill ln ls mkdir mount od ps rm sha256sum sleep sort"
        " stat tail test touch tr true wc xargs",
    )
)

Document = dict[str, Any]

#: 2025-07-01T10:20:30.123456789Z
_MTIME = 1751365230123456789


def to_json(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def model_layer(
    path: str, digest: str, size: int, *, family: str = "cncf", mode: int = 0o644, mtime: int = _MTIME
) -> Document:
    """The descriptor of a raw ModelPack layer; `family` is `cncf` or, before version 0.0.7, `cnai`; `mtime` in nanoseconds."""
    metadata = {
        "name": posixpath.basename(path),
        "mode": mode,
        "uid": 0,
        "gid": 0,
        "size": size,
        "mtime": f"{datetime.fromtimestamp(mtime // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{mtime % 10**9:09}Z",
        "typeflag": 0,
    }
    annotations = {
        f"org.{family}.model.filepath": path,
        f"org.{family}.model.file.metadata+json": json.dumps(metadata, separators=(",", ":")),
    }
    media_type = f"application/vnd.{family}.model.{_class_of(path)}.v1.raw"
    return {"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations}


def tar_layer(path: str, digest: str, size: int) -> Document:
    """The descriptor of a ModelPack layer that is an uncompressed tar of weights; without a `path` it is not annotated."""
    annotations = {"annotations": {"org.cncf.model.filepath": path}} if path else {}
    return {"mediaType": "application/vnd.cncf.model.weight.v1.tar", "digest": digest, "size": size, **annotations}


def model_config(layers: Sequence[Document], name: str = "lab") -> bytes:
    """The config blob of a model; for raw layers a diffID is the layer's own digest."""
    config = {
        "descriptor": {"createdAt": "2025-07-21T00:00:00Z", "name": name},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        "config": {"architecture": "transformer", "format": "safetensors"},
    }
    return to_json(config)


def model_manifest(config: Document, layers: Sequence[Document], *, family: str = "cncf") -> Document:
    """`config` is the config blob's descriptor without a media type."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": f"application/vnd.{family}.model.manifest.v1+json",
        "config": {"mediaType": f"application/vnd.{family}.model.config.v1+json", **config},
        "layers": list(layers),
    }


def _class_of(path: str) -> str:
    suffix = posixpath.splitext(path)[1]
    if suffix in {".json", ".txt", ".jinja"}:
        return "weight.config"
    return {".md": "doc", ".py": "code"}.get(suffix, "weight")


def busybox_layer(busybox: Path, files: Mapping[str, bytes] | None = None) -> bytes:
    """An uncompressed tar with a static busybox, its applets, and `files` by absolute path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "model"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        everything = {
            "/bin/busybox": busybox.read_bytes(),
            "/etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
            **(files or {}),
        }
        for path, content in everything.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755 if path.startswith("/bin/") else 0o644
            tar.addfile(entry, io.BytesIO(content))
        for applet in sorted(_APPLETS):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()


def image_config(diff_ids: Sequence[str]) -> bytes:
    """An image that sleeps when nothing else is asked of it, so it serves as a pod's pause image too."""
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return to_json(config)


def image_manifest(config: Document, layers: Sequence[Document]) -> Document:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": IMAGE_CONFIG, **config},
        "layers": [{"mediaType": IMAGE_LAYER, **layer} for layer in layers],
    }
