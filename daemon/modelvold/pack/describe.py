"""What a model says of itself in its `config.json` and by its files' names, for the artifact's config. Pure.

Nothing is guessed: a field that the folder does not state is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from modelvold.oci.media_type import Role

_FORMATS = {
    "safetensors": "safetensors",
    "gguf": "gguf",
    "ggml": "ggml",
    "onnx": "onnx",
    "pt": "pytorch",
    "pth": "pytorch",
    "bin": "pytorch",
    "tflite": "tflite",
    "pb": "tensorflow",
    "h5": "keras",
    "keras": "keras",
    "engine": "tensorrt",
    "trt": "tensorrt",
    "mlmodel": "coreml",
}


@dataclass(frozen=True, slots=True)
class Description:
    """The words of ModelPack's config (model-spec `docs/config.md`); empty where unknown. `created` is RFC 3339."""

    name: str
    created: str
    family: str = ""
    architecture: str = ""
    format: str = ""
    precision: str = ""
    quantization: str = ""


def describe(name: str, created: str, files: Iterable[tuple[str, Role, int]], config_json: bytes | None) -> Description:
    """The description of a model called `name`; `files` are (path, role, size in bytes), `config_json` the model's
    own.
    """
    fields = _fields(config_json)
    text_model = fields.get("text_config")
    inner = text_model if isinstance(text_model, dict) else {}
    quantization = fields.get("quantization_config")
    return Description(
        name=name,
        created=created,
        family=_text(fields, "model_type"),
        architecture="transformer" if _text(fields, "transformers_version") else "",
        format=_format(files),
        precision=next(
            (found for table in (fields, inner) for key in ("dtype", "torch_dtype") if (found := _text(table, key))), ""
        ),
        quantization=_text(quantization, "quant_method") if isinstance(quantization, dict) else "",
    )


def _format(files: Iterable[tuple[str, Role, int]]) -> str:
    """The format that most of the weights' bytes have."""
    weights: Counter[str] = Counter()
    for path, role, size in files:
        suffix = path.rpartition(".")[2].lower()
        if role is Role.WEIGHT and suffix in _FORMATS:
            weights[_FORMATS[suffix]] += size
    return weights.most_common(1)[0][0] if weights else ""


def _fields(config_json: bytes | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(config_json or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # the file is the model's business and is packed as it is


def _text(fields: dict[str, Any], key: str) -> str:
    found = fields.get(key)
    return found if isinstance(found, str) else ""
