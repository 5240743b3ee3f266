"""What a file is to an engine, by its name alone. Names and paths are bytes, as the tree has them.

Not `pack.classify`, which must agree with other packers: to them `vocab.txt` is a document, and a chat template code.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Turn(IntEnum):
    """When an engine reads a small file: before it looks at weights, while it does, never."""

    FIRST = 0
    BESIDE = 1
    NEVER = 2


class Form(Enum):
    """How weights lie in a file. ARCHIVE: what `torch.save` writes, a zip since 2020."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ARCHIVE = "archive"
    OTHER = "other"


_FORMS = {
    b"safetensors": Form.SAFETENSORS,
    b"gguf": Form.GGUF,
    b"bin": Form.ARCHIVE,
    b"pt": Form.ARCHIVE,
    b"pth": Form.ARCHIVE,
    b"ckpt": Form.ARCHIVE,
}
#: Configuration, templates, tokenizers.
_FIRST = frozenset(b"json jinja model tiktoken spm bpe vocab merges yaml yml toml ini cfg conf".split())
_FIRST_NAMES = (b"tokenizer", b"vocab", b"merges")
_NEVER = frozenset(b"md txt rst pdf html htm png jpg jpeg gif webp svg csv gitattributes gitignore".split())
_NEVER_NAMES = (b"license", b"licence", b"readme", b"notice", b"changelog", b"use_policy")


def turn_of(name: bytes) -> Turn:
    """Of a file with this name, whatever folder it is in."""
    name = name.lower()
    suffix = name.rpartition(b".")[2]
    if suffix in _FIRST or name.startswith(_FIRST_NAMES):
        return Turn.FIRST
    return Turn.NEVER if suffix in _NEVER or name.startswith(_NEVER_NAMES) else Turn.BESIDE


def form_of(name: bytes) -> Form:
    return _FORMS.get(name.lower().rpartition(b".")[2], Form.OTHER)


def is_weight_map(name: bytes) -> bool:
    """Whether it says which files of its folder have the weights (`engine.weight_map`)."""
    return name.lower().endswith(b".index.json")


def is_second_copy(path: bytes) -> bool:
    """Whether publishers give weights here that stand elsewhere in the model too, in the shape of the code they were trained by."""
    *folders, name = path.split(b"/")
    return b"original" in folders or name.startswith(b"consolidated")
