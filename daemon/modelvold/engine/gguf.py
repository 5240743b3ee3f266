"""The head of a GGUF file: key-value pairs, among them the tokenizer's arrays, then where each tensor lies (ggml's docs/gguf.md).

How long it is stands nowhere: only a walk over every string of a vocabulary would tell. That would help nobody. Of a file by itself
the weights follow the head anyway, in the order in which they are read; and of a model in several the vocabulary is in the first.
"""

from __future__ import annotations

import re

#: Bytes from a file's start. With a vocabulary: 256 Ki words, their merges and scores. Without: 15,000 tensors.
_HEAD = 16 << 20
_HEAD_OF_A_LATER_PART = 2 << 20
#: As `llama-gguf-split` names parts, and llama.cpp finds them.
_PART = re.compile(rb"-([0-9]{5})-of-[0-9]{5}\.gguf$", re.IGNORECASE)


def head_of(name: bytes) -> int:
    """Bytes from its start that hold the head of a file with this name, as good as always."""
    part = _PART.search(name)
    return _HEAD_OF_A_LATER_PART if part and int(part[1]) > 1 else _HEAD
